// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "accuracy/promise.hpp"

#include <algorithm>
#include <utility>

#include <wavekv/wavekv.hpp>

namespace wavekv_bench {

std::vector<promise_point> measure_promise(const asked_layer& layer) {
  using cache_type = wavekv::kv_cache<wavekv::bf16, wavekv::wave_index<>, wavekv::wave_buffer<>,
                                      wavekv::cpu<wavekv::serial_executor>>;
  cache_type cache(geometry_of(*layer.data));
  const wavekv::sequence_id sequence = append_taught(cache, *layer.data);
  std::vector<promise_point> points;
  for (const float epsilon : {0.01F, 0.02F, 0.05F, 0.1F}) {
    for (const float delta : {0.01F, 0.05F, 0.1F}) {
      wavekv::verified_bound<> bound;
      bound.epsilon = epsilon;
      bound.rule.epsilon = epsilon / 2;  // as the defaults stand to each other
      bound.delta = delta;
      promise_point point;
      point.epsilon = epsilon;
      point.delta = delta;
      point.measured = ask_all(cache, sequence, layer, bound);
      for (const std::vector<float>& errors : point.measured.errors) {
        const auto n = std::ranges::count_if(errors, [&](float error) { return error <= epsilon; });
        point.within.push_back(static_cast<double>(n) / static_cast<double>(errors.size()));
      }
      points.push_back(std::move(point));
    }
  }
  return points;
}

}  // namespace wavekv_bench
