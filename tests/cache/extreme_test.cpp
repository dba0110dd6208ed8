// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "support/filled_cache.hpp"

// Where estimates cannot be good they must still be sane: an attention output is a mean of values, so that no
// bound may answer with something much longer than the longest value, however steep the query.

using namespace wavekv_test;
using wavekv::bf16;

namespace {

double longest(std::span<const float> rows, std::size_t dim) {
  double most = 0.0;
  for (std::size_t first = 0; first < rows.size(); first += dim) {
    double squared = 0.0;
    for (std::size_t i = first; i < first + dim; ++i) {
      squared += static_cast<double>(rows[i]) * static_cast<double>(rows[i]);
    }
    const double length = std::sqrt(squared);
    if (!(length <= most)) most = std::isnan(length) ? HUGE_VAL : length;
  }
  return most;
}

}  // namespace

TEST_CASE("estimates of steep queries stay among the values") {
  for (const key_family family : all_families) {
    filled<bf16, tree> data(family, 1100, 91);
    const double most = longest(data.tokens.values, data.sizes.value_dim);
    for (const float length : {0.0F, 1e-30F, 1.0F, 5.0F, 30.0F, 1000.0F}) {
      const std::vector<float> query = data.query(length);
      const auto check = [&](const auto& bound, const char* name) {
        const outputs got = attend_once(data.cache, data.sequence, 0, query, bound);
        INFO("keys ", std::string(name_of(family)), ", query ", length, ", bound ",
             std::string(name));
        CHECK(all_finite(got));
        CHECK(longest(got.out, data.sizes.value_dim) <= 2.0 * most);
      };
      check(wavekv::exact{}, "exact");
      check(wavekv::error_bound<>{}, "error_bound");
      check(wavekv::fixed_budget{}, "fixed_budget");
      check(estimate_all{}, "estimate_all");
      check(alternate<false>{}, "alternate");
    }
  }
}
