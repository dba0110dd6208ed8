// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "model.hpp"
#include "sampler.hpp"
#include "session.hpp"

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

/// @brief Reads all of a prompt but its last token, in chunks, and seals it. The last token is the
/// first decode step, so that every generated token is answered through the cache's bound.
/// @param on_progress called with the number of tokens done, several times a chunk
/// @return seconds  @throw interrupted_error on Ctrl-C
double read_prompt(model& model, session& session, std::span<const token_id> prompt,
                   std::size_t chunk, const std::function<void(double)>& on_progress = {});

/// @brief Generates from a session that has read all of its prompt but `last`.
/// @param on_token called with each new token
generation generate(model& model, session& session, token_id last, sampler sampler,
                    stop_options stop, const std::function<void(token_id)>& on_token = {});

/// @brief Feeds a session tokens that were generated elsewhere: the same steps, for measuring.
void replay(model& model, session& session, token_id last, const generation& generated);

}  // namespace transformer
