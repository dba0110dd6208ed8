// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "generation.hpp"

#include <algorithm>
#include <chrono>

#include "interrupt.hpp"

namespace transformer {
namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) {
  return std::chrono::duration<double>(clock::now() - start).count();
}

}  // namespace

double read_prompt(model& model, session& session, std::span<const token_id> prompt,
                   std::size_t chunk, const std::function<void(double)>& on_progress) {
  const auto start = clock::now();
  const std::size_t n = prompt.empty() ? 0 : prompt.size() - 1;
  for (std::size_t at = 0; at < n; at += chunk) {
    const std::size_t size = std::min(chunk, n - at);
    model.prefill(session, prompt.subspan(at, size), [&](double share) {
      if (interrupted()) throw interrupted_error();
      if (on_progress) on_progress(static_cast<double>(at) + share * static_cast<double>(size));
    });
  }
  session.attention->end_prompt();
  return seconds_since(start);
}

generation generate(model& model, session& session, token_id last, sampler sampler,
                    stop_options stop, const std::function<void(token_id)>& on_token) {
  const auto& ends = model.config().eos_ids;
  generation result;
  while (result.tokens.size() < stop.max_tokens) {
    if (interrupted()) {
      result.interrupted = true;
      break;
    }
    const auto start = clock::now();
    const auto logits = model.decode(session, last);
    result.seconds += seconds_since(start);
    ++result.n_steps;
    last = sampler.choose(logits);
    if (stop.at_end_token && std::ranges::find(ends, last) != ends.end()) break;
    result.tokens.push_back(last);
    if (on_token) on_token(last);
  }
  return result;
}

void replay(model& model, session& session, token_id last, const generation& generated) {
  for (std::size_t i = 0; i < generated.n_steps && !interrupted(); ++i) {
    model.decode(session, last);
    if (i < generated.tokens.size()) last = generated.tokens[i];
  }
}

}  // namespace transformer
