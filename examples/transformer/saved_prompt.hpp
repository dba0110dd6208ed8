// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/file/byte_stream.hpp>

#include "config.hpp"
#include "model.hpp"
#include "session.hpp"
#include "wave_attention.hpp"

/// @file saved_prompt.hpp
/// @brief A session that has read a prompt, in a file. wavekv keeps the full-attention layers there; what else a session
/// remembers goes along as the engine's own part.

namespace transformer {

/// @brief A prompt that was read before.
struct saved_prompt {
  session read;                  ///< has read all tokens but the last
  std::vector<token_id> tokens;  ///< the prompt
};

/// @brief Writes a session that has read all of a prompt but its last token.
/// @param name  of the model
/// @throw wavekv::io_error
template <class Cache>
void save_prompt(const std::filesystem::path& path, const session& read,
                 std::span<const token_id> tokens, const std::string& name) {
  wavekv::byte_writer engine;
  engine.put(std::uint64_t{read.n_tokens});
  engine.put(std::uint64_t{tokens.size()});
  engine.put_array(tokens);
  for (const sliding_window& window : read.windows) window.save(engine);
  static_cast<const wave_attention<Cache>&>(*read.attention).save(path, name, engine.bytes());
}

/// @brief Reads what save_prompt wrote.
/// @throw wavekv::io_error and those that derive from it: another model, another kind of file, one that was changed
template <class Cache>
saved_prompt load_prompt(const std::filesystem::path& path, const model& model, Cache& cache,
                         any_bound bound, const std::string& name) {
  std::vector<std::byte> bytes;
  const wavekv::sequence_id sequence = cache.load(path, name, &bytes);
  saved_prompt saved;
  saved.read =
      model.start(std::make_unique<wave_attention<Cache>>(cache, std::move(bound), sequence));
  wavekv::byte_reader engine(bytes, path.string() + ": engine");
  saved.read.n_tokens = engine.get<std::uint64_t>();
  const auto n = engine.get<std::uint64_t>();
  (void)engine.require<token_id>(n);
  saved.tokens.resize(n);
  engine.get_array(std::span<token_id>(saved.tokens));
  if (n == 0 || saved.read.n_tokens + 1 != n || cache.length(sequence) + 1 != n)
    engine.fail("names another number of tokens than the layers hold");
  for (sliding_window& window : saved.read.windows) window.load(engine);
  return saved;
}

}  // namespace transformer
