// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <string>

#include <doctest/doctest.h>

#include <wavekv/wavekv.hpp>

#include "archetypes/bounds.hpp"
#include "support/zone_check.hpp"

using namespace wavekv_test;

TEST_CASE("the answer is the formula over the chosen zones: flat index") {
  for (const key_family family : {key_family::uniform, key_family::clustered, key_family::equal,
                                  key_family::needle, key_family::tiny}) {
    check_all_bounds<float, index_of<flat, wavekv::spherical_kmeans<4>>>(family);
  }
  for (const key_family family : {key_family::uniform, key_family::clustered}) {
    check_dropping_bounds<float, index_of<flat, wavekv::spherical_kmeans<4>>>(family);
  }
}

TEST_CASE("drop_all leaves sink and window") {
  using index = index_of<two_levels, wavekv::spherical_kmeans<3>>;
  filled<float, index> data(small_geometry(), key_family::uniform, 14);
  check_zones(data, drop_all{}, 1e-5);
}
