// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <string>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "support/zone_check.hpp"

using namespace wavekv_test;

using wavekv::bf16;
using wavekv::f16;
using wavekv::geometry;

TEST_CASE("the answer is the formula over the chosen zones: two levels, bf16, keys and values "
          "clustered") {
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::equal,
                                  key_family::needle, key_family::tiny}) {
    check_all_bounds<bf16, index_of<two_levels, wavekv::query_metric_kmeans<3>>>(family);
  }
  for (const key_family family : {key_family::uniform, key_family::clustered}) {
    check_dropping_bounds<bf16, index_of<two_levels, wavekv::query_metric_kmeans<3>>>(family);
  }
}

TEST_CASE("the answer is the formula over the chosen zones: three levels, f16, softcap and scale") {
  using index = index_of<three_levels, wavekv::spherical_kmeans<3>>;
  geometry sizes = small_geometry();
  sizes.logit_softcap = 3.0F;
  sizes.scale = 0.4F;
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::needle}) {
    filled<f16, index> data(sizes, family, 13);
    INFO("keys ", std::string(name_of(family)));
    check_zones(data, estimate_all{}, tolerance);
    check_zones(data, open_all{}, tolerance);
    check_zones(data, alternate<false>{1}, tolerance);
    check_zones(data, alternate<true>{1}, tolerance);
  }
}
