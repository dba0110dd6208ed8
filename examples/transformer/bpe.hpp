// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "config.hpp"

namespace transformer {

/// @brief Byte-pair encoding of single words over a byte-level vocabulary. Pairs are merged in
/// order of rank, leftmost first among equals: the merges that Hugging Face's tokenizers makes.
class bpe {
 public:
  using vocabulary = std::unordered_map<std::string, token_id>;
  using merge_list = std::vector<std::pair<std::string, std::string>>;

  /// @param vocab  entries written in GPT-2's byte-to-unicode characters
  /// @param merges in order of rank; both halves and their concatenation must be in the vocabulary
  /// @param ignore_merges a word that is itself an entry is taken whole (Llama-3)
  /// @throw model_error for a merge of unknown entries
  bpe(const vocabulary& vocab, const merge_list& merges, bool ignore_merges);

  /// @brief Appends the ids of one word (raw bytes) to `out`. Bytes without an entry are left out.
  /// Complexity: O(n log n) in the bytes of a word; words seen before are looked up. Not for two
  /// threads at once.
  void encode(std::string_view word, std::vector<token_id>& out);

 private:
  struct merge {
    std::uint32_t rank;
    token_id result;
  };
  std::vector<token_id> merge_word(std::string_view word) const;
  const merge* find_merge(token_id left, token_id right) const;

  std::array<token_id, 256> id_of_byte_{};
  std::unordered_map<std::uint64_t, merge> merges_;
  vocabulary whole_words_;  // raw bytes -> id, only with ignore_merges
  std::unordered_map<std::string, std::vector<token_id>> cache_;
};

}  // namespace transformer
