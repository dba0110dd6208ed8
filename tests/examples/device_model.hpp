// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <span>
#include <vector>

#include <doctest/doctest.h>

#include "device_machine.hpp"
#include "json_file.hpp"
#include "model.cuh"
#include "model.hpp"
#include "support.hpp"

namespace test {

using transformer::any_bound;
using transformer::token_id;

/// A model on a device of its own, and a cache there.
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

  /// A session that has read tokens in chunks.
  auto read(std::span<const token_id> ids, std::size_t chunk, const any_bound& bound) {
    auto session = model.start(cache, bound);
    for (std::size_t at = 0; at < ids.size(); at += chunk)
      model.prefill(session, ids.subspan(at, std::min(chunk, ids.size() - at)));
    model.end_prompt(session);
    return session;
  }

  emulated_runtime runtime;
  emulated_runtime::stream_type stream = runtime.make_stream();
  plain_product multiply;
  transformer::device_model<Machine> model;
  typename Machine::cache_type cache;
};

inline std::vector<token_id> stored_prompt(const std::filesystem::path& directory, std::size_t i) {
  return transformer::read_json(directory / "expected.json")["prompts"][i]["ids"]
      .get<std::vector<token_id>>();
}

inline float largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    largest = std::max(largest, std::isnan(difference) ? INFINITY : difference);
  }
  return largest;
}

/// Logits on the device against those on the CPU with full attention, over the steps that follow a prompt.
template <class Machine>
float largest_difference(const std::filesystem::path& directory, std::span<const token_id> ids,
                         std::size_t n_prompt, std::size_t chunk) {
  transformer::model model(directory);
  auto expected = start_dense(model);
  model.prefill(expected, ids.first(n_prompt));
  device<Machine> on(directory);
  auto found = on.read(ids.first(n_prompt), chunk, wavekv::exact{});
  float largest = 0;
  for (const token_id id : ids.subspan(n_prompt)) {
    const auto logits = on.model.decode(found, id);
    largest = std::max(largest, largest_difference(model.decode(expected, id), logits));
  }
  return largest;
}

}  // namespace test
