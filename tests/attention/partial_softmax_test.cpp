// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/attention/exact.hpp>
#include <wavekv/attention/partial_softmax.hpp>

#include "reference/fresh_seed.hpp"

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::size_t n_queries = 3;
constexpr std::size_t value_dim = 21;

// The state of n rows with logits about `level`, and the same in double for comparison.
struct sample {
  wavekv::partial_softmax state{n_queries, value_dim};
  std::vector<float> logits;
  std::vector<float> values;
  std::size_t n;

  sample(std::size_t n_rows, float level, std::mt19937_64& random)
      : logits(n_queries * n_rows), values(n_rows * value_dim), n(n_rows) {
    std::normal_distribution<float> normal;
    for (float& x : logits) x = level + 3.0F * normal(random);
    for (float& x : values) x = normal(random);
    wavekv::accumulate_rows(logits.data(), n, values.data(), n, wavekv::accumulation::add,
                            state.view());
  }
};

wavekv::partial_softmax copy(const wavekv::partial_softmax& from) {
  wavekv::partial_softmax to(n_queries, value_dim);
  wavekv::merge(to.view(), from.view());
  return to;
}

struct finished {
  std::vector<float> out = std::vector<float>(n_queries * value_dim, std::nanf(""));
  std::vector<float> lse = std::vector<float>(n_queries, std::nanf(""));
  explicit finished(const wavekv::partial_softmax& state) {
    wavekv::finish(state.view(), out.data(), value_dim, lse.data());
  }
};

// Outputs are averages of values of about 1, so that an absolute bound is a relative one: a handful of
// roundings and two exponentials of 1 ulp each.
void check_equal(const wavekv::partial_softmax& a, const wavekv::partial_softmax& b,
                 double bound = 5e-6) {
  const finished x(a);
  const finished y(b);
  for (std::size_t i = 0; i < x.out.size(); ++i)
    CHECK(std::abs(static_cast<double>(x.out[i]) - static_cast<double>(y.out[i])) <= bound);
  for (std::size_t i = 0; i < n_queries; ++i) {
    if (x.lse[i] == y.lse[i]) continue;
    CHECK(std::abs(static_cast<double>(x.lse[i]) - static_cast<double>(y.lse[i])) <=
          bound + std::abs(static_cast<double>(y.lse[i])) * 0x1p-22);
  }
}

void check_same_bits(const wavekv::const_partial_softmax_view& a,
                     const wavekv::const_partial_softmax_view& b) {
  for (std::size_t i = 0; i < n_queries; ++i) {
    CHECK(a.max[i] == b.max[i]);
    CHECK(a.denominator[i] == b.denominator[i]);
    CHECK(std::equal(a.numerator_of(i), a.numerator_of(i) + value_dim, b.numerator_of(i)));
  }
}

}  // namespace

TEST_CASE("the empty state: zeros, an lse of -inf, and the identity of merge") {
  const wavekv::partial_softmax empty(n_queries, value_dim);
  const finished result(empty);
  for (const float x : result.out) CHECK(x == 0.0F);
  for (const float lse : result.lse) CHECK(lse == -infinity);
  for (std::size_t i = 0; i < n_queries; ++i) CHECK(empty.view().is_empty(i));

  auto random = wavekv_test::generator("identity");
  for (const float level : {-1e4F, 0.0F, 1e4F}) {
    sample a(40, level, random);
    const auto before = copy(a.state);
    wavekv::merge(a.state.view(), empty.view());
    check_same_bits(a.state.view(), before.view());
    wavekv::partial_softmax into(n_queries, value_dim);
    wavekv::merge(into.view(), a.state.view());
    check_same_bits(into.view(), before.view());
    wavekv::subtract(into.view(), empty.view());
    check_same_bits(into.view(), before.view());
  }
  wavekv::partial_softmax both(n_queries, value_dim);
  wavekv::merge(both.view(), empty.view());
  CHECK(both.view().is_empty(0));
}

TEST_CASE("merge is associative and commutative up to rounding, whatever the levels") {
  auto random = wavekv_test::generator("laws");
  const float levels[] = {-1e4F, -50.0F, 0.0F, 3.0F, 90.0F, 1e4F};
  for (int repeat = 0; repeat < 50; ++repeat) {
    sample a(1 + random() % 70, levels[random() % 6], random);
    sample b(1 + random() % 70, levels[random() % 6], random);
    sample c(1 + random() % 70, levels[random() % 6], random);

    auto ab = copy(a.state);
    wavekv::merge(ab.view(), b.state.view());
    auto ba = copy(b.state);
    wavekv::merge(ba.view(), a.state.view());
    check_equal(ab, ba);

    auto ab_c = copy(ab);
    wavekv::merge(ab_c.view(), c.state.view());
    auto bc = copy(b.state);
    wavekv::merge(bc.view(), c.state.view());
    auto a_bc = copy(a.state);
    wavekv::merge(a_bc.view(), bc.view());
    check_equal(ab_c, a_bc);
  }
}

TEST_CASE("a run cut into parts and merged in any order is the run") {
  auto random = wavekv_test::generator("cut");
  for (int repeat = 0; repeat < 20; ++repeat) {
    sample whole(200, 10.0F, random);
    std::vector<wavekv::partial_softmax> parts;
    for (std::size_t r = 0; r < whole.n;) {
      const std::size_t n = std::min<std::size_t>(whole.n - r, 1 + random() % 90);
      parts.emplace_back(n_queries, value_dim);
      wavekv::accumulate_rows(whole.logits.data() + r, whole.n, whole.values.data() + r * value_dim,
                              n, wavekv::accumulation::add, parts.back().view());
      r += n;
    }
    std::shuffle(parts.begin(), parts.end(), random);
    wavekv::partial_softmax merged(n_queries, value_dim);
    for (const auto& part : parts) wavekv::merge(merged.view(), part.view());
    check_equal(merged, whole.state, 1e-5);  // sums of 200 terms in another order
  }
}

TEST_CASE("what is merged and subtracted again is gone, up to rounding relative to the whole") {
  auto random = wavekv_test::generator("subtract");
  for (const float level : {-30.0F, 0.0F, 5.0F}) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      sample a(50, 0.0F, random);
      sample b(50, level, random);
      auto state = copy(a.state);
      wavekv::merge(state.view(), b.state.view());
      // The denominators are summed at the larger level: rounding is relative to all that was held.
      const double magnify = 1.0 + std::exp(std::max(0.0, static_cast<double>(level) + 12.0));
      wavekv::subtract(state.view(), b.state.view());
      if (magnify < 1e6) check_equal(state, a.state, 4e-6 * magnify);
      // As with clusters: a mass no smaller takes the place of what was taken out.
      wavekv::merge(state.view(), b.state.view());
      auto expected = copy(a.state);
      wavekv::merge(expected.view(), b.state.view());
      check_equal(state, expected, 1e-5);
    }
  }
}

TEST_CASE("everything subtracted: finite, and empty enough to start over") {
  auto random = wavekv_test::generator("all gone");
  sample a(30, 20.0F, random);
  auto state = copy(a.state);
  wavekv::subtract(state.view(), a.state.view());
  const finished nothing(state);
  for (const float x : nothing.out) CHECK(std::isfinite(x));
  wavekv::merge(state.view(), a.state.view());
  check_equal(state, a.state);
}

TEST_CASE("a sink adds e^logit to the denominator and no value") {
  auto random = wavekv_test::generator("sink");
  for (const float logit : {-200.0F, -2.0F, 0.0F, 15.0F, 200.0F}) {
    sample a(33, 0.0F, random);
    const finished before(a.state);
    for (std::size_t i = 0; i < n_queries; ++i) wavekv::add_sink_logit(a.state.view(), i, logit);
    const finished after(a.state);
    for (std::size_t i = 0; i < n_queries; ++i) {
      const double lse = static_cast<double>(before.lse[i]);
      const double high = std::max(lse, static_cast<double>(logit));
      const double expected =
          high + std::log(std::exp(lse - high) + std::exp(static_cast<double>(logit) - high));
      CHECK(static_cast<double>(after.lse[i]) == doctest::Approx(expected).epsilon(1e-6));
      const double share = std::exp(lse - expected);
      for (std::size_t c = 0; c < value_dim; ++c) {
        CHECK(static_cast<double>(after.out[i * value_dim + c]) ==
              doctest::Approx(share * static_cast<double>(before.out[i * value_dim + c]))
                  .epsilon(1e-4)
                  .scale(1.0));
      }
    }
  }
  wavekv::partial_softmax only(n_queries, value_dim);
  wavekv::add_sink_logit(only.view(), 0, 3.0F);
  const finished result(only);
  CHECK(result.lse[0] == 3.0F);
  CHECK(result.out[0] == 0.0F);
  CHECK(result.lse[1] == -infinity);
}

TEST_CASE("views: parts, strides, and finishing in place") {
  auto random = wavekv_test::generator("views");
  sample a(25, 0.0F, random);
  const finished expected(a.state);

  std::vector<float> memory(2 * n_queries + n_queries * (value_dim + 4), -7.0F);
  const wavekv::partial_softmax_view strided{
      memory.data(), memory.data() + n_queries, memory.data() + 2 * n_queries, n_queries, value_dim,
      value_dim + 4};
  wavekv::reset(strided);
  for (std::size_t i = 0; i < n_queries; ++i)
    wavekv::merge(strided.part(i, 1), a.state.view().part(i, 1));
  wavekv::finish(strided, strided.numerator, strided.numerator_stride);
  for (std::size_t i = 0; i < n_queries; ++i) {
    for (std::size_t c = 0; c < value_dim; ++c)
      CHECK(strided.numerator_of(i)[c] == expected.out[i * value_dim + c]);
    if (i + 1 < n_queries) CHECK(strided.numerator_of(i)[value_dim] == -7.0F);
  }
}
