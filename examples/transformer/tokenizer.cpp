// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "tokenizer.hpp"

#include <algorithm>
#include <cctype>
#include <system_error>
#include <utility>

#include <utf8proc.h>

#include "byte_level.hpp"
#include "error.hpp"
#include "json_file.hpp"
#include "unicode.hpp"

namespace transformer {
namespace {

using nlohmann::json;

/// Several times any vocabulary: what a small file can allocate by one large id is bounded.
constexpr token_id max_id = 1 << 20;

/// Ids that a template may put in front of a sequence, and regular expressions one after the other;
/// real files have one or two, and a handful.
constexpr std::size_t max_prefix = 1000;
constexpr std::size_t max_splitters = 100;

/// The expression of a ByteLevel pre-tokenizer with use_regex: GPT-2's.
constexpr const char* gpt2_expression =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void unsupported(const std::string& what) {
  throw model_error(one_line(what) + " is not supported");
}

token_id to_id(const json& value) {
  if (!value.is_number_unsigned() ||
      value.get<std::uint64_t>() > static_cast<std::uint64_t>(max_id))
    throw model_error("token id " + one_line(value.dump()) + " is out of range");
  return value.get<token_id>();
}

std::string type_of(const json& part) { return part.at("type").get<std::string>(); }

/// The elements of a Sequence, or the part alone.
json parts_of(const json& part, const char* list) {
  if (part.is_null()) return json::array();
  return type_of(part) == "Sequence" ? part.at(list) : json::array({part});
}

/// Merges are written "a b", or ["a", "b"] since tokenizers 0.20.
bpe::merge_list parse_merges(const json& list) {
  bpe::merge_list merges;
  merges.reserve(list.size());
  for (const auto& entry : list) {
    if (entry.is_array() && entry.size() == 2) {
      merges.emplace_back(entry[0].get<std::string>(), entry[1].get<std::string>());
      continue;
    }
    const auto text = entry.get<std::string>();
    const auto space = text.find(' ');
    if (space == std::string::npos)
      throw model_error("merge \"" + one_line(text) + "\" is not a pair");
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

regex_splitter parse_split(const json& part) {
  const json& pattern = part.at("pattern");
  std::string expression;
  if (pattern.contains("Regex")) {
    expression = pattern["Regex"].get<std::string>();
  } else {
    for (const char c : pattern.at("String").get<std::string>()) {
      if (std::ispunct(static_cast<unsigned char>(c)) != 0) expression += '\\';
      expression += c;
    }
  }
  const auto behavior = part.at("behavior").get<std::string>();
  const bool invert = value_or(part, "invert", false);
  if (behavior == "Isolated") return {expression, split_behavior::matches_and_gaps};
  if (behavior == "Removed")
    return {expression, invert ? split_behavior::matches : split_behavior::gaps};
  unsupported("Split behavior \"" + behavior + "\"");
}

bool is_white_space(std::int32_t code) {
  if ((code >= 9 && code <= 13) || code == 0x85) return true;
  const auto category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

bool is_word_character(std::int32_t code) {
  const auto category = utf8proc_category(code);
  return code == '_' || (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO);
}

/// The character that begins at `at`, and its length; text is valid UTF-8.
std::pair<std::int32_t, std::size_t> character_at(std::string_view text, std::size_t at) {
  std::int32_t code = 0;
  const auto n = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
                                  static_cast<utf8proc_ssize_t>(text.size() - at), &code);
  return {code, n > 0 ? static_cast<std::size_t>(n) : 1};
}

std::size_t start_of_character_before(std::string_view text, std::size_t at) {
  do --at;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U);
  return at;
}

}  // namespace

struct tokenizer::found_token {
  const added_token* token;
  std::size_t begin;
  std::size_t end;
};

tokenizer::tokenizer(const std::filesystem::path& directory) {
  const auto path = directory / "tokenizer.json";
  const auto json = read_json(path);
  try {
    parse(json);
  } catch (const nlohmann::json::exception& e) {
    throw model_error(path.string() + ": " + one_line(e.what()));
  } catch (const model_error& e) {
    throw model_error(path.string() + ": " + e.what());
  }
  choose_prefix(directory / "tokenizer_config.json");
}

void tokenizer::parse(const json& json) {
  bpe_.emplace(make_bpe(json.at("model")));
  if (json.contains("added_tokens")) parse_added_tokens(json["added_tokens"]);
  if (json.contains("normalizer")) parse_normalizer(json["normalizer"]);
  parse_pre_tokenizer(json.at("pre_tokenizer"));
  if (json.contains("post_processor")) parse_template(json["post_processor"]);
}

bpe tokenizer::make_bpe(const json& model) {
  if (value_or<std::string>(model, "type", "BPE") != "BPE")
    unsupported("tokenizer model " + model["type"].dump());
  if (value_or(model, "byte_fallback", false))
    unsupported("byte_fallback (a SentencePiece vocabulary)");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!value_or<std::string>(model, key, "").empty()) unsupported(key);
  bpe::vocabulary vocab;
  vocab.reserve(model.at("vocab").size());
  for (const auto& [token, id] : model.at("vocab").items()) {
    vocab.emplace(token, to_id(id));
    set_bytes(to_id(id), bytes_of_token(token), false);
  }
  return {vocab, parse_merges(model.at("merges")), value_or(model, "ignore_merges", false)};
}

void tokenizer::set_bytes(token_id id, std::string bytes, bool special) {
  const auto at = static_cast<std::size_t>(id);
  if (at >= bytes_.size()) {
    bytes_.resize(at + 1);
    special_.resize(at + 1);
  }
  bytes_[at] = std::move(bytes);
  special_[at] = special;
}

void tokenizer::parse_added_tokens(const json& list) {
  for (const auto& entry : list) {
    added_token token;
    token.content = entry.at("content").get<std::string>();
    token.id = to_id(entry.at("id"));
    token.special = value_or(entry, "special", false);
    token.strip_left = value_or(entry, "lstrip", false);
    token.strip_right = value_or(entry, "rstrip", false);
    token.single_word = value_or(entry, "single_word", false);
    token.normalized = value_or(entry, "normalized", !token.special);
    if (token.content.empty()) continue;
    set_bytes(token.id, token.content, token.special);
    added_.push_back(std::move(token));
  }
  std::ranges::sort(added_, [](const added_token& a, const added_token& b) {
    return std::pair(b.content.size(), a.id) < std::pair(a.content.size(), b.id);
  });
  for (std::size_t i = 0; i < added_.size(); ++i)
    added_by_first_byte_[static_cast<unsigned char>(added_[i].content.front())].push_back(i);
}

void tokenizer::parse_normalizer(const json& normalizer) {
  for (const auto& part : parts_of(normalizer, "normalizers")) {
    if (type_of(part) != "NFC") unsupported("normalizer \"" + type_of(part) + "\"");
    nfc_ = true;
  }
}

void tokenizer::parse_pre_tokenizer(const json& pre_tokenizer) {
  for (const auto& part : parts_of(pre_tokenizer, "pretokenizers")) {
    const auto type = type_of(part);
    if (type == "Split") {
      splitters_.push_back(parse_split(part));
    } else if (type == "Digits") {
      const bool each = value_or(part, "individual_digits", false);
      splitters_.emplace_back(each ? R"(\p{N})" : R"(\p{N}+)", split_behavior::matches_and_gaps);
    } else if (type == "ByteLevel") {
      if (value_or(part, "add_prefix_space", false)) unsupported("add_prefix_space");
      if (value_or(part, "use_regex", true))
        splitters_.emplace_back(gpt2_expression, split_behavior::matches_and_gaps);
    } else {
      unsupported("pre-tokenizer \"" + type + "\"");
    }
    if (splitters_.size() > max_splitters) throw model_error("too many pre-tokenizers");
  }
}

/// Special tokens in front of the sequence in a TemplateProcessing; what comes after it is of no
/// use for generation.
void tokenizer::parse_template(const json& post_processor) {
  for (const auto& part : parts_of(post_processor, "processors")) {
    if (type_of(part) != "TemplateProcessing") continue;
    std::vector<token_id> ids;
    for (const auto& piece : part.at("single")) {
      if (!piece.contains("SpecialToken")) break;
      const auto name = piece["SpecialToken"].at("id").get<std::string>();
      for (const auto& id : part.at("special_tokens").at(name).at("ids")) ids.push_back(to_id(id));
      if (ids.size() > max_prefix) throw model_error("the template begins with too many tokens");
    }
    for (const token_id id : ids)
      if (static_cast<std::size_t>(id) >= n_ids())
        throw model_error("token id " + std::to_string(id) + " of the template is unknown");
    if (!ids.empty()) template_prefix_ = ids;
  }
}

void tokenizer::choose_prefix(const std::filesystem::path& path) {
  if (template_prefix_) prefix_ = *template_prefix_;
  std::error_code error;
  if (template_prefix_ || !std::filesystem::exists(path, error)) return;
  const auto config = read_json(path);
  try {
    const bool generic =
        value_or<std::string>(config, "tokenizer_class", "") == "PreTrainedTokenizerFast";
    if (!value_or(config, "add_bos_token", generic)) return;
    auto bos = value_or<json>(config, "bos_token", nullptr);
    if (bos.is_object()) bos = bos.at("content");
    if (bos.is_null()) return;
    const auto text = bos.get<std::string>();
    const auto token = std::ranges::find(added_, text, &added_token::content);
    if (token == added_.end())
      throw model_error(path.string() + ": bos_token \"" + one_line(text) +
                        "\" is not an added token");
    prefix_ = {token->id};
  } catch (const json::exception& e) {
    throw model_error(path.string() + ": " + one_line(e.what()));
  }
}

bool tokenizer::begins_at(const added_token& token, std::string_view text, std::size_t at) const {
  if (text.substr(at, token.content.size()) != token.content) return false;
  if (!token.single_word) return true;
  const std::size_t end = at + token.content.size();
  const bool joined_left =
      at > 0 && is_word_character(character_at(text, start_of_character_before(text, at)).first);
  const bool joined_right = end < text.size() && is_word_character(character_at(text, end).first);
  return !joined_left && !joined_right;
}

/// The leftmost added token, the longest of those that begin there, with the white space it takes
/// along.
std::optional<tokenizer::found_token> tokenizer::find_added(std::string_view text, std::size_t from,
                                                            bool normalized) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    for (const std::size_t i : added_by_first_byte_[static_cast<unsigned char>(text[at])]) {
      const auto& token = added_[i];
      if (token.normalized != normalized || !begins_at(token, text, at)) continue;
      found_token found{&token, at, at + token.content.size()};
      while (token.strip_left && found.begin > from) {
        const std::size_t before = start_of_character_before(text, found.begin);
        if (!is_white_space(character_at(text, before).first)) break;
        found.begin = before;
      }
      while (token.strip_right && found.end < text.size()) {
        const auto [code, length] = character_at(text, found.end);
        if (!is_white_space(code)) break;
        found.end += length;
      }
      return found;
    }
  }
  return std::nullopt;
}

/// First added tokens of the raw text, then, in what lies between and is normalised, those of the
/// normalised text.
void tokenizer::encode_between(std::string_view text, bool normalized, std::vector<token_id>& out) {
  const auto encode_gap = [&](std::string_view gap) {
    if (gap.empty()) return;
    if (normalized) return encode_words(gap, out);
    encode_between(nfc_ ? to_nfc(std::string(gap)) : std::string(gap), true, out);
  };
  std::size_t at = 0;
  while (const auto found = find_added(text, at, normalized)) {
    encode_gap(text.substr(at, found->begin - at));
    out.push_back(found->token->id);
    at = found->end;
  }
  encode_gap(text.substr(at));
}

void tokenizer::encode_words(std::string_view text, std::vector<token_id>& out) {
  std::vector<std::string_view> words = {text};
  for (const auto& splitter : splitters_) {
    std::vector<std::string_view> finer;
    for (const auto word : words) splitter.split(word, finer);
    words = std::move(finer);
  }
  for (const auto word : words) bpe_->encode(word, out);
}

std::vector<token_id> tokenizer::encode(std::string_view text) {
  std::vector<token_id> ids;
  encode_between(valid_utf8(text), false, ids);
  return ids;
}

std::string_view tokenizer::bytes(token_id id) const noexcept {
  const auto at = static_cast<std::size_t>(id);
  if (id < 0 || at >= bytes_.size() || special_[at]) return {};
  return bytes_[at];
}

std::string tokenizer::decode(const std::vector<token_id>& ids, bool keep_special) const {
  std::string text;
  for (const token_id id : ids) {
    const bool known = id >= 0 && static_cast<std::size_t>(id) < bytes_.size();
    if (known && keep_special) text += bytes_[static_cast<std::size_t>(id)];
    if (known && !keep_special) text += bytes(id);
  }
  return valid_utf8(text);
}

}  // namespace transformer
