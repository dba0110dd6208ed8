// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The model on a device, emulated, against the model on the CPU.
#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "device_machine.hpp"
#include "error.hpp"
#include "json_file.hpp"
#include "model.cuh"
#include "model.hpp"
#include "support.hpp"

namespace {

using transformer::token_id;

template <class Machine>
struct device {
  explicit device(const std::filesystem::path& directory)
      : multiply(runtime),
        model(directory, runtime, multiply, stream),
        cache(transformer::cache_geometry(model.config(), model.n_full_layers()), [&] {
          typename Machine::cache_type::options_type options;
          options.runtime = runtime;
          return options;
        }()) {}

  ~device() { cache.synchronize(stream); }  // what its last calls left in the stream

  test::capturing_runtime runtime;
  test::capturing_runtime::stream_type stream = runtime.make_stream();
  test::plain_product multiply;
  transformer::device_model<Machine> model;
  typename Machine::cache_type cache;
};

using machine = test::emulated_machine<float, wavekv::wave_index<>, true>;

float largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    largest = std::max(largest, std::isnan(difference) ? INFINITY : difference);
  }
  return largest;
}

}  // namespace

TEST_CASE("thin path") {
  for (const std::string name :
       {"llama", "llama_f32", "llama_f16", "qwen3", "smollm3", "smollm3_window"}) {
    const auto directory = test::data_dir / "models" / name;
    transformer::model model(directory);
    device<machine> on(directory);
    const auto prompt = transformer::read_json(directory / "expected.json")["prompts"][3];
    const auto ids = prompt["ids"].get<std::vector<token_id>>();
    auto expected = test::start_dense(model);
    auto found = on.model.start(on.cache, wavekv::exact{});
    for (std::size_t at = 0; at < 150; at += 50) {
      model.prefill(expected, std::span(ids).subspan(at, 50));
      on.model.prefill(found, std::span(ids).subspan(at, 50));
    }
    on.model.end_prompt(found);
    float largest = 0, most = 0;
    for (std::size_t at = 150; at < 170; ++at) {
      const auto a = model.decode(expected, ids[at]);
      const auto b = on.model.decode(found, ids[at]);
      for (float x : a) most = std::max(most, std::abs(x));
      largest = std::max(largest, largest_difference(a, b));
    }
    MESSAGE(name << " " << largest << " of " << most);
  }
}
