// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "bpe.hpp"

#include <queue>

#include "byte_level.hpp"
#include "error.hpp"
#include "unicode.hpp"

namespace transformer {
namespace {

constexpr token_id no_id = -1;
constexpr std::size_t max_cached_words = 100'000;
constexpr std::size_t max_cached_bytes = 64;  // longer words hardly come twice

constexpr std::uint64_t pair_key(token_id left, token_id right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U) |
         static_cast<std::uint32_t>(right);
}

/// A symbol of the word in the making; a doubly linked list, so that a merge costs nothing but its
/// neighbours.
struct symbol {
  token_id id;
  std::int32_t previous;
  std::int32_t next;
};

/// A pair that could be merged when it was found. It is stale when one of its symbols has changed
/// since.
struct candidate {
  std::uint32_t rank;
  std::int32_t at;  // index of the left symbol
  token_id left;
  token_id right;
  token_id result;

  bool operator>(const candidate& other) const {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};

token_id find_id(const bpe::vocabulary& vocab, const std::string& token) {
  const auto found = vocab.find(token);
  return found == vocab.end() ? no_id : found->second;
}

}  // namespace

bpe::bpe(const vocabulary& vocab, const merge_list& merges, bool ignore_merges) {
  for (unsigned byte = 0; byte < id_of_byte_.size(); ++byte)
    id_of_byte_[byte] =
        find_id(vocab, std::string(byte_to_unicode(static_cast<unsigned char>(byte))));
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const token_id left_id = find_id(vocab, left);
    const token_id right_id = find_id(vocab, right);
    const token_id result = find_id(vocab, left + right);
    if (left_id == no_id || right_id == no_id || result == no_id)
      throw model_error("merge " + std::to_string(rank) + " (\"" + one_line(left) + "\" + \"" +
                        one_line(right) + "\") is not in the vocabulary");
    // Of a pair that is listed twice, the last rank counts, as in the reference.
    merges_.insert_or_assign(pair_key(left_id, right_id),
                             merge{static_cast<std::uint32_t>(rank), result});
  }
  if (ignore_merges)
    for (const auto& [token, id] : vocab) whole_words_.emplace(bytes_of_token(token), id);
}

const bpe::merge* bpe::find_merge(token_id left, token_id right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::vector<token_id> bpe::merge_word(std::string_view word) const {
  std::vector<symbol> symbols;
  symbols.reserve(word.size());
  for (const char c : word) {
    const token_id id = id_of_byte_[static_cast<unsigned char>(c)];
    if (id == no_id) continue;
    const auto at = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  }
  if (symbols.empty()) return {};
  symbols.back().next = -1;

  std::priority_queue<candidate, std::vector<candidate>, std::greater<>> queue;
  const auto offer = [&](std::int32_t at) {
    if (at < 0 || symbols[static_cast<std::size_t>(at)].next < 0) return;
    const token_id left = symbols[static_cast<std::size_t>(at)].id;
    const token_id right =
        symbols[static_cast<std::size_t>(symbols[static_cast<std::size_t>(at)].next)].id;
    if (const merge* found = find_merge(left, right))
      queue.push({found->rank, at, left, right, found->result});
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<std::int32_t>(i));

  while (!queue.empty()) {
    const candidate best = queue.top();
    queue.pop();
    symbol& left = symbols[static_cast<std::size_t>(best.at)];
    if (left.id != best.left || left.next < 0) continue;
    symbol& right = symbols[static_cast<std::size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = no_id;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = best.at;
    offer(left.previous);
    offer(best.at);
  }

  std::vector<token_id> ids;
  for (std::int32_t at = 0; at >= 0; at = symbols[static_cast<std::size_t>(at)].next)
    ids.push_back(symbols[static_cast<std::size_t>(at)].id);
  return ids;
}

void bpe::encode(std::string_view word, std::vector<token_id>& out) {
  const std::string key(word);
  if (const auto whole = whole_words_.find(key); whole != whole_words_.end()) {
    out.push_back(whole->second);
    return;
  }
  if (word.size() > max_cached_bytes) {
    const auto ids = merge_word(word);
    out.insert(out.end(), ids.begin(), ids.end());
    return;
  }
  auto found = cache_.find(key);
  if (found == cache_.end()) {
    if (cache_.size() >= max_cached_words) cache_.clear();
    found = cache_.emplace(key, merge_word(word)).first;
  }
  out.insert(out.end(), found->second.begin(), found->second.end());
}

}  // namespace transformer
