// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/calibration.hpp>
#include <wavekv/wavekv.hpp>

#include "reference/fresh_seed.hpp"
#include "support/filled_cache.hpp"

// What a calibrated bound predicts, against errors worked out without the library.

using namespace wavekv_test;
using wavekv::nhd;

namespace {

wavekv::tensor_view<const float, 3> query_view(const wavekv::geometry& sizes,
                                               const std::vector<float>& queries) {
  const std::size_t row = sizes.n_query_heads * sizes.key_dim;
  return nhd(queries.data(), queries.size() / row, sizes.n_query_heads, sizes.key_dim);
}

template <class Filled>
std::vector<float> make_queries(Filled& data, std::size_t n) {
  std::vector<float> all;
  for (std::size_t i = 0; i < n; ++i) {
    const std::vector<float> query = data.query(2.0F);
    all.insert(all.end(), query.begin(), query.end());
  }
  return all;
}

/// Ratios of observed and predicted errors, the oracle's answers taken for right.
template <class Filled>
std::vector<double> ratios(Filled& data, const std::vector<float>& queries,
                           const wavekv::error_bound<>& bound) {
  const std::size_t row = data.sizes.n_query_heads * data.sizes.key_dim;
  std::vector<double> found;
  for (std::size_t i = 0; i < queries.size() / row; ++i) {
    const std::vector<float> query(queries.begin() + static_cast<std::ptrdiff_t>(i * row),
                                   queries.begin() + static_cast<std::ptrdiff_t>((i + 1) * row));
    const auto [got, stats] = attend_counted(data.cache, data.sequence, 0, query, bound);
    const reference_attention truth = attend_naively(data.sizes, 0, data.tokens, query);
    const double observed = largest_error(data.sizes, got.out, truth, 0.0);
    if (observed >= static_cast<double>(wavekv::calibration::least_error)) {  // as calibrate does
      found.push_back(observed / static_cast<double>(stats.predicted_error));
    }
  }
  std::ranges::sort(found);
  return found;
}

/// Reads some clusters whatever is predicted, and none for it: what is read does not depend on error_scale.
wavekv::error_bound<> by_floors() {
  wavekv::error_bound<> bound;
  bound.epsilon = 1e6F;
  bound.hidden_share = 0.0F;
  bound.floor_read = 0.1F;
  return bound;
}

}  // namespace

TEST_CASE("calibration: the median of what predictions fell short by") {
  wavekv::calibration errors;
  CHECK(errors.factor() == 1.0F);
  for (const float ratio : {5.0F, 0.5F, 3.0F, 1.0F, 2.0F, 9.0F, 4.0F}) {
    errors.add(0.01F, 0.01F * ratio);
  }
  CHECK(errors.n_pairs() == wavekv::calibration::least_pairs - 1);
  CHECK(errors.factor() == 1.0F);  // too few
  errors.add(0.01F, 0.0009F);      // rounding's
  errors.add(0.0F, 0.5F);          // nothing was predicted
  errors.add(1e-45F, 0.5F);        // next to nothing: their quotient is infinite
  CHECK(errors.n_pairs() == wavekv::calibration::least_pairs - 1);
  errors.add(0.02F, 0.002F);
  errors.add(0.02F, 0.2F);
  CHECK(errors.n_pairs() == 9);
  CHECK(errors.factor() == doctest::Approx(3.0).epsilon(1e-6));

  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF}) {
    CHECK_THROWS_AS(errors.add(bad, 0.1F), wavekv::value_error);
    CHECK_THROWS_AS(errors.add(0.1F, bad), wavekv::value_error);
  }
  CHECK_THROWS_WITH(errors.add(0.5F, HUGE_VALF),
                    "calibration: predicted is 0.5, observed inf; allowed: finite");
  CHECK(errors.n_pairs() == 9);  // as before
  CHECK(errors.factor() == doctest::Approx(3.0).epsilon(1e-6));
}

TEST_CASE("largest_error is the worst head's, whatever the layout") {
  const std::vector<float> right{3, 4, 0, 0, 0, 10};  // [1, 3, 2]: lengths 5, 0, 10
  const std::vector<float> found{3, 4.5F, 7, 7, 2, 10};
  const auto exactly = nhd(right.data(), 1, 3, 2);
  CHECK(wavekv::largest_error(nhd(found.data(), 1, 3, 2), exactly) == doctest::Approx(0.2));
  CHECK(wavekv::largest_error(exactly, exactly) == 0.0F);
  // The same by heads first, and in two queries.
  const std::vector<float> twice{3, 4, 3, 4, 0, 10, 0, 10};  // [head, token, dim]
  std::vector<float> off = twice;
  off[3] += 1.0F;
  CHECK(wavekv::largest_error(wavekv::hnd(off.data(), 2, 2, 2),
                              wavekv::hnd(twice.data(), 2, 2, 2)) == doctest::Approx(0.2));
  CHECK_THROWS_AS((void)wavekv::largest_error(exactly, nhd(found.data(), 1, 2, 3)),
                  wavekv::shape_error);
  CHECK_THROWS_AS(
      (void)wavekv::largest_error(nhd(static_cast<const float*>(nullptr), 1, 3, 2), exactly),
      wavekv::shape_error);
  // A NaN is an error, not none, on either side and in whichever head.
  for (const std::size_t at : {0U, 2U, 5U}) {
    std::vector<float> bad = right;
    bad[at] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(wavekv::largest_error(nhd(bad.data(), 1, 3, 2), exactly)) == (at != 2));
    CHECK(std::isnan(wavekv::largest_error(exactly, nhd(bad.data(), 1, 3, 2))));
  }
}

TEST_CASE("a calibrated bound's predictions are right in the median of the queries it was "
          "calibrated with") {
  filled<float, flat> data(key_family::clustered, 1300, generator("calibration")());
  const std::vector<float> queries = make_queries(data, 33);
  const wavekv::error_bound<> bound = by_floors();
  const std::vector<double> before = ratios(data, queries, bound);
  REQUIRE(before.size() >= 30);  // the others err by rounding
  const double median = before[before.size() / 2];
  const wavekv::error_bound<> calibrated =
      wavekv::calibrate(data.cache, data.sequence, 0, query_view(data.sizes, queries), bound);
  // The oracle knows no rounding: each error is off by some epsilons of what is above least_error.
  CHECK(static_cast<double>(calibrated.error_scale) == doctest::Approx(median).epsilon(2e-3));
  const std::vector<double> after = ratios(data, queries, calibrated);
  CHECK(after[after.size() / 2] == doctest::Approx(1.0).epsilon(2e-3));

  // And so whatever the scale was before.
  wavekv::error_bound<> wrong = bound;
  wrong.error_scale = 0.01F;
  CHECK(wavekv::calibrate(data.cache, data.sequence, 0, query_view(data.sizes, queries), wrong)
            .error_scale == doctest::Approx(calibrated.error_scale).epsilon(1e-5));
  CHECK(calibrated.epsilon == bound.epsilon);
  CHECK(calibrated.floor_read == bound.floor_read);
}

TEST_CASE("other queries err by more than is predicted in about half of the steps, also where "
          "epsilon decides what is read") {
  // A prediction that is right in the median is above the error in half of the steps; 256 steps, and the median of 256 others,
  // scatter by 8 each, together by 11.3: 4.5 deviations are 51.
  filled<float, tree> data(key_family::clustered, 1300, generator("calibrated steps")());
  wavekv::error_bound<> bound = without_caps(0.05F);
  bound.error_scale = 0.1F;  // ten times as sure as it should be
  const std::vector<float> queries = make_queries(data, 256);
  for (int pass = 0; pass < 2;
       ++pass) {  // what is planned changes with the scale, and its errors with it
    bound = wavekv::calibrate(data.cache, data.sequence, 0, query_view(data.sizes, queries), bound);
  }
  const std::vector<double> later = ratios(data, make_queries(data, 256), bound);
  REQUIRE(later.size() == 256);  // none errs by rounding
  const auto below = std::ranges::count_if(later, [](double ratio) { return ratio <= 1.0; });
  CHECK(below >= 128 - 51);
  CHECK(below <= 128 + 51);
}

TEST_CASE("calibrate leaves a bound as it is where errors are rounding, and a cache as it was") {
  filled<float, flat> data(key_family::uniform, 300, 5);
  const std::vector<float> queries = make_queries(data, 12);
  wavekv::error_bound<> reads_all = by_floors();
  reads_all.floor_read = reads_all.floor_open = 1.0F;
  const auto calibrated =
      wavekv::calibrate(data.cache, data.sequence, 0, query_view(data.sizes, queries), reads_all);
  CHECK(calibrated.error_scale == 1.0F);
  CHECK(wavekv::calibrate(data.cache, data.sequence, 0, query_view(data.sizes, {}), reads_all)
            .error_scale == 1.0F);

  const std::vector<float> query = data.query();
  const outputs before =
      attend_counted(data.cache, data.sequence, 0, query, wavekv::error_bound<>{}).first;
  std::vector<float> bad = queries;
  bad.back() = HUGE_VALF;  // in the last query
  CHECK_THROWS_AS(
      (void)wavekv::calibrate(data.cache, data.sequence, 0, query_view(data.sizes, bad), reads_all),
      wavekv::value_error);
  CHECK_THROWS_AS((void)wavekv::calibrate(data.cache, data.sequence, 7,
                                          query_view(data.sizes, queries), reads_all),
                  wavekv::shape_error);
  CHECK_THROWS_AS((void)wavekv::calibrate(data.cache, data.sequence, 0,
                                          query_view(data.sizes, queries),
                                          wavekv::error_bound<>{.error_scale = 0.0F}),
                  wavekv::config_error);
  const outputs after =
      attend_counted(data.cache, data.sequence, 0, query, wavekv::error_bound<>{}).first;
  CHECK(after.out == before.out);
}

TEST_CASE("a cap counts as met by the error that is reported") {
  filled<float, flat> data(key_family::clustered, 1300, 9);
  const std::vector<float> query = data.query(2.0F);
  wavekv::error_bound<> bound = by_floors();
  const auto seen = [&] {
    return attend_counted(data.cache, data.sequence, 0, query, bound).second;
  };
  const float predicted = seen().predicted_error;
  REQUIRE(predicted > 0.0F);
  // No cap lets anything be read by prediction, so that epsilon changes no plan.
  bound.max_open = bound.max_read = 0.0F;
  bound.free_tokens = 0;
  bound.epsilon = 2.0F * predicted;
  CHECK(seen().capped == 0);
  bound.error_scale = 4.0F;
  const wavekv::step_stats scaled = seen();
  CHECK(scaled.predicted_error == doctest::Approx(4.0F * predicted).epsilon(1e-6));
  CHECK(scaled.capped > 0);
  bound.error_scale = 0.25F;
  bound.epsilon = 0.5F * predicted;
  CHECK(seen().capped == 0);
}
