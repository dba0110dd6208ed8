// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/node_pricing.hpp>

#include "reference/fresh_seed.hpp"

// Prices over arrays against their definitions for one node. A price is some ten operations and two exponentials, of
// one to two units in the last place each: 1e-5 leaves room for ten times that. Exponentials below e^-87 are zero.

namespace {

constexpr double tolerance = 1e-5;
constexpr float poison = 12345.0F;

struct nodes {
  std::vector<float> sizes, dispersions, logits;
};

nodes make_nodes(auto& random, std::size_t n) {
  nodes made;
  const auto number = [&] { return static_cast<float>(random() % 1000003) / 1000003.0F; };
  for (std::size_t i = 0; i < n; ++i) {
    made.sizes.push_back(static_cast<float>(1 + random() % 300));
    // From none over tiny ones, whose e^x - 1 would cancel, to such that reach the limits.
    made.dispersions.push_back(random() % 8 == 0 ? 0.0F : std::exp(-14.0F + 17.0F * number()));
    made.logits.push_back(30.0F * number() - 25.0F);
  }
  return made;
}

}  // namespace

TEST_CASE("price_nodes gives each node what its definitions say") {
  auto random = wavekv_test::generator("prices");
  for (const std::size_t n : {0U, 1U, 7U, 16U, 301U}) {
    for (const float softcap : {0.0F, 3.0F}) {
      const nodes data = make_nodes(random, n);
      std::vector<float> share(n + 1, poison);
      std::vector<float> error(n + 1, poison);
      std::vector<float> nearness(n + 1, poison);
      wavekv::head_prices head;
      head.logits = data.logits.data();
      head.variance = 1.7F;
      head.log_normalizer = 2.5F;
      head.relative = 0.8F;
      head.share = share.data();
      head.error = error.data();
      head.nearness = nearness.data();
      wavekv::price_nodes(data.sizes.data(), data.dispersions.data(), n, softcap, head);
      CHECK(share[n] == poison);
      CHECK(error[n] == poison);
      CHECK(nearness[n] == poison);
      for (std::size_t i = 0; i < n; ++i) {
        const float variance =
            wavekv::expected_variance(head.variance, data.dispersions[i], softcap);
        const float mass = data.sizes[i] * std::exp(data.logits[i] - head.log_normalizer);
        const float off = head.relative * mass * wavekv::expected_error(variance, data.sizes[i]);
        const float near = wavekv::expected_largest_logit(data.logits[i], variance, data.sizes[i]);
        CHECK(static_cast<double>(share[i]) ==
              doctest::Approx(static_cast<double>(mass)).epsilon(tolerance).scale(1e-30));
        CHECK(static_cast<double>(error[i]) ==
              doctest::Approx(static_cast<double>(off)).epsilon(tolerance).scale(1e-30));
        CHECK(static_cast<double>(nearness[i]) ==
              doctest::Approx(static_cast<double>(near)).epsilon(tolerance).scale(30.0));
      }
    }
  }
}

TEST_CASE("settle_nodes sums by zone") {
  auto random = wavekv_test::generator("settled");
  for (const std::size_t n : {0U, 1U, 7U, 16U, 301U}) {
    const nodes data = make_nodes(random, n);
    std::vector<wavekv::zone> zones(n);
    for (wavekv::zone& zone : zones) zone = static_cast<wavekv::zone>(random() % 3);
    constexpr float most = 0.5F;
    constexpr float relative = 1.5F;
    double squared = 0.0;
    double typical = 0.0;
    double followed = 0.0;
    double dropped = 0.0;
    // Any positive numbers do for shares and errors.
    for (std::size_t i = 0; i < n; ++i) {
      const auto share = static_cast<double>(data.sizes[i]);
      const auto error = static_cast<double>(data.dispersions[i]);
      if (zones[i] == wavekv::zone::estimation) {
        squared += error * error;
        const double weight = static_cast<double>(relative) * share;
        if (error > 0.0) typical += 1.0 / (1.0 / (error * error) + 1.0 / (weight * weight));
        followed += share * std::min(error, static_cast<double>(most));
      } else if (zones[i] == wavekv::zone::dropped) {
        dropped += share;
      }
    }
    const wavekv::settled_nodes sums =
        wavekv::settle_nodes(zones.data(), data.dispersions.data(), n, data.sizes.data(),
                             data.dispersions.data(), most, relative);
    CHECK(static_cast<double>(sums.squared_error) == doctest::Approx(squared).epsilon(tolerance));
    CHECK(static_cast<double>(sums.typical_squared_error) ==
          doctest::Approx(typical).epsilon(tolerance));
    CHECK(sums.typical_squared_error <= sums.squared_error * (1.0F + 1e-5F));
    CHECK(static_cast<double>(sums.followed_dispersion) ==
          doctest::Approx(followed).epsilon(tolerance));
    CHECK(static_cast<double>(sums.dropped_share) == doctest::Approx(dropped).epsilon(tolerance));
  }
}
