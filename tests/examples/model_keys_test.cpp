// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Each bound against its promise on keys, values and queries that a trained model makes.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include <doctest/doctest.h>

#include "generation.hpp"
#include "model.hpp"
#include "needle.hpp"
#include "support.hpp"
#include "wave_attention.hpp"

namespace {

using transformer::any_bound;
using cache_type = wavekv::kv_cache<>;
using probe = transformer::error_probe<cache_type>;

/// The shipped model after it read 5,000 tokens of this project's text and a question about a needle in it.
struct read_haystack {
  read_haystack() {
    transformer::tokenizer tokenizer(test::needle_dir);
    transformer::needle_maker maker(tokenizer, transformer::haystack_text(WAVEKV_SOURCE_DIR),
                                    transformer::needle_words(test::needle_dir));
    const auto hay = maker.make(5000, 8, 4711);
    auto ids = hay.tokens;
    const auto question = maker.question(hay.needles[5].word);
    ids.insert(ids.end(), question.begin(), question.end());
    last = ids.back();
    test::read_prompt(model, session, ids, 1024);
  }

  /// What 32 decode steps by a bound did, each asked of full attention, too.
  transformer::decode_record answer(const any_bound& bound) {
    const auto& parent =
        static_cast<const transformer::wave_attention<cache_type>&>(*session.attention);
    auto fork = session.fork(std::make_unique<probe>(parent, bound));
    transformer::generate(model, fork, last, transformer::sampler({}), {32, true});
    return static_cast<const probe&>(*fork.attention).record();
  }

  transformer::model model{test::needle_dir};
  cache_type cache{transformer::cache_geometry(model.config(), model.n_full_layers())};
  transformer::session session = model.start(
      std::make_unique<transformer::wave_attention<cache_type>>(cache, wavekv::exact{}));
  transformer::token_id last = 0;
};

double share_within(const std::vector<float>& errors, float limit) {
  const auto n = std::ranges::count_if(errors, [&](float error) { return error <= limit; });
  return static_cast<double>(n) / static_cast<double>(errors.size());
}

}  // namespace

TEST_CASE("every bound keeps its promise on the shipped model's own keys") {
  read_haystack read;
  for (const float error : read.answer(wavekv::exact{}).true_errors) CHECK(error == 0.0F);

  // 1.8 % of the clusters, of about 16 tokens each, rounded up for every head and step; what is dropped is said.
  const auto fixed = read.answer(wavekv::fixed_budget{.least_per_head = 0}).total;
  const double n_clusters = static_cast<double>(fixed.tokens_held) / 16.0;
  CHECK(static_cast<double>(fixed.clusters_read) >= 0.015 * n_clusters);
  CHECK(static_cast<double>(fixed.clusters_read) <= 0.025 * n_clusters);
  CHECK(fixed.clusters_dropped > 0);
  CHECK(fixed.dropped_mass > 0.0F);

  // A prediction, not a promise of single answers: nine of ten keep it (97 of 100 in the README's table).
  wavekv::error_bound<> predicted;
  predicted.epsilon = 0.1F;
  predicted.max_open = predicted.max_read = 1.0F;
  const auto by_prediction = read.answer(predicted);
  for (const float error : by_prediction.predicted_errors) CHECK(error <= 0.1F * 1.0001F);
  CHECK(by_prediction.total.capped == 0);
  CHECK(share_within(by_prediction.true_errors, 0.1F) >= 0.9);
  CHECK(by_prediction.total.tokens_read < by_prediction.total.tokens_held / 2);

  // A promise for 95 of 100, of which 256 are seen (32 steps, 2 layers, 4 heads): three standard
  // deviations below are 0.95 - 3·sqrt(0.95·0.05/256) = 0.909.
  for (const float epsilon : {0.1F, 0.05F}) {
    wavekv::verified_bound<> verified;
    verified.epsilon = epsilon;
    verified.delta = 0.05F;
    const auto record = read.answer(verified);
    CHECK(share_within(record.true_errors, epsilon) >= 0.909);
    CHECK(record.total.tokens_sampled > 0);
  }
}
