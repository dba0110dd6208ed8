// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "config.hpp"
#include "interrupt.hpp"
#include "sampler.hpp"

namespace transformer {

/// @brief What was generated, and how long the decode steps took.
struct generation {
  std::vector<token_id> tokens;  ///< the end token, if there was one, is not among them
  std::size_t n_steps = 0;
  double seconds = 0;  ///< of the decode steps alone: no sampling, no printing
  bool interrupted = false;

  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(n_steps) / seconds : 0;
  }
};

/// @brief How long to generate.
struct stop_options {
  std::size_t max_tokens = 256;
  bool at_end_token = true;
};

/// @brief Seconds from a point in time until now.
inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A Model has config(), prefill(session, chunk, after_layer), end_prompt(session) and decode(session, token): a model
// with its sessions, or an engine with its sequences.

/// @brief Reads all of a prompt but its last token, in chunks, and seals it. The last token is the
/// first decode step, so that every generated token is answered through the cache's bound.
/// @param on_progress called with the number of tokens done, several times a chunk
/// @return seconds  @throw interrupted_error on Ctrl-C
template <class Model, class Session>
double read_prompt(Model& model, Session& session, std::span<const token_id> prompt,
                   std::size_t chunk, const std::function<void(double)>& on_progress = {}) {
  const auto start = std::chrono::steady_clock::now();
  const std::size_t n = prompt.empty() ? 0 : prompt.size() - 1;
  for (std::size_t at = 0; at < n; at += chunk) {
    const std::size_t size = std::min(chunk, n - at);
    model.prefill(session, prompt.subspan(at, size), [&](double share) {
      if (interrupted()) throw interrupted_error();
      if (on_progress) on_progress(static_cast<double>(at) + share * static_cast<double>(size));
    });
  }
  model.end_prompt(session);
  return seconds_since(start);
}

/// @brief Generates from a session that has read all of its prompt but `last`.
/// @param on_token called with each new token
template <class Model, class Session>
generation generate(Model& model, Session& session, token_id last, sampler sampler,
                    stop_options stop, const std::function<void(token_id)>& on_token = {}) {
  const auto& ends = model.config().eos_ids;
  generation result;
  while (result.tokens.size() < stop.max_tokens) {
    if (interrupted()) {
      result.interrupted = true;
      break;
    }
    const auto start = std::chrono::steady_clock::now();
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

/// @brief Feeds a session tokens that were generated elsewhere: the same steps, for measuring.
template <class Model, class Session>
void replay(Model& model, Session& session, token_id last, const generation& generated) {
  for (std::size_t i = 0; i < generated.n_steps && !interrupted(); ++i) {
    model.decode(session, last);
    if (i < generated.tokens.size()) last = generated.tokens[i];
  }
}

}  // namespace transformer
