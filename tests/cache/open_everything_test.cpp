// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "support/filled_cache.hpp"

// A search that opens everything has estimated everything before: what is left of that must be rounding.

using namespace wavekv_test;
using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;

TEST_CASE_TEMPLATE("a bound that opens everything is exact up to the rounding of its corrections",
                   S, float, bf16, f16) {
  for (const key_family family : all_families) {
    filled<S, tree> data(family, 600, 1);
    INFO("keys ", std::string(name_of(family)));
    for (int i = 0; i < 4; ++i) {
      const std::vector<float> query = data.query(i < 2 ? 1.0F : 3.0F);
      const reference_attention expected = attend_naively(data.sizes, 0, data.tokens, query);
      // What is estimated and taken out again leaves rounding of 1e-7 of the largest estimate; the
      // outlier's logit of several hundred is itself known to 1e-4 only.
      const double tolerance = family == key_family::outlier ? 1e-3 : 1e-4;
      const auto check = [&](const outputs& got, double allowed) {
        CHECK(largest_error(data.sizes, got.out, expected) <= allowed);
        CHECK(largest_lse_error(got.lse, expected) <= allowed);
      };
      check(attend_once(data.cache, data.sequence, 0, query, open_all{}), tolerance);
      check(attend_once(data.cache, data.sequence, 0, query, wavekv::fixed_budget{1.0F, 0.0F}),
            tolerance);
      // error_bound does not read a cluster of equal keys, whose estimate errs only by the rounding of
      // the stored mean value.
      const bool alike = family == key_family::equal || family == key_family::tiny;
      check(attend_once(data.cache, data.sequence, 0, query, without_caps(1e-20F)),
            alike ? std::max(tolerance, double{wavekv::scalar_traits<S>::epsilon}) : tolerance);
    }
  }
}
