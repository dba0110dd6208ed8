// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "bpe.hpp"
#include "config.hpp"
#include "regex_splitter.hpp"

namespace transformer {

/// @brief A token that is cut out of the text before anything else is done, e.g. `<|im_end|>`.
struct added_token {
  std::string content;
  token_id id = 0;
  bool special = false;      ///< left out of decoded text
  bool strip_left = false;   ///< takes the white space before it along
  bool strip_right = false;  ///< and after it
  bool single_word = false;  ///< only where no letter or digit adjoins
  bool normalized = false;   ///< looked for after normalisation, not before
};

/// @brief Text to ids and back, by a tokenizer.json of the byte-level BPE kind (Llama-3, Qwen2/3,
/// SmolLM3).
///
/// Encoding: cut out added tokens; normalise (NFC) what lies between; split it into words by the
/// pre-tokenizers' regular expressions; merge each word's bytes by rank. Decoding: the bytes of the
/// entries, one after the other.
class tokenizer {
 public:
  /// @throw model_error when the file is wrong or asks for something that is not implemented here
  explicit tokenizer(const std::filesystem::path& directory);

  /// @brief Ids of the text, without BOS. Bytes that are not UTF-8 count as U+FFFD. Not for two
  /// threads at once.
  std::vector<token_id> encode(std::string_view text);

  /// @brief The raw bytes of one token; empty for special tokens. May end inside a character: see
  /// utf8_stream.
  std::string_view bytes(token_id id) const noexcept;

  /// @brief The text of several tokens, special ones left out, broken characters as U+FFFD.
  std::string decode(const std::vector<token_id>& ids, bool keep_special = false) const;

  /// @brief Ids that go in front of a sequence: the tokenizer's own template decides, else
  /// `add_bos_token`, else a `bos_token` that tokenizer_config.json names for a tokenizer of the
  /// generic class.
  const std::vector<token_id>& prefix() const noexcept { return prefix_; }

  /// @brief One more than the largest id.
  std::size_t n_ids() const noexcept { return bytes_.size(); }

 private:
  void parse(const nlohmann::json& json);
  bpe make_bpe(const nlohmann::json& model);
  void parse_added_tokens(const nlohmann::json& list);
  void parse_normalizer(const nlohmann::json& normalizer);
  void parse_pre_tokenizer(const nlohmann::json& pre_tokenizer);
  void parse_template(const nlohmann::json& post_processor);
  void choose_prefix(const std::filesystem::path& tokenizer_config);
  void set_bytes(token_id id, std::string bytes, bool special);

  struct found_token;
  bool begins_at(const added_token& token, std::string_view text, std::size_t at) const;
  std::optional<found_token> find_added(std::string_view text, std::size_t from,
                                        bool normalized) const;
  void encode_between(std::string_view text, bool normalized, std::vector<token_id>& out);
  void encode_words(std::string_view text, std::vector<token_id>& out);

  std::optional<bpe> bpe_;
  std::vector<std::string> bytes_;  // [id]; empty for ids that are not in use
  std::vector<bool> special_;       // [id]
  std::vector<added_token> added_;  // longest first, so that the first match is the longest
  std::array<std::vector<std::size_t>, 256> added_by_first_byte_;  // indices into added_
  std::vector<regex_splitter> splitters_;
  std::optional<std::vector<token_id>> template_prefix_;
  std::vector<token_id> prefix_;
  bool nfc_ = false;
};

}  // namespace transformer
