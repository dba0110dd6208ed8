// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <charconv>
#include <cstddef>
#include <span>
#include <sstream>
#include <string>
#include <string_view>

#include <wavekv/core/checksum.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/scalar.hpp>

/// @file fingerprint.hpp
/// @brief What a saved sequence belongs to, as text: a line for each thing that must be the same to load it.

namespace wavekv {

namespace detail {

/// The name of a type, as the compiler writes it.
template <class T>
constexpr std::string_view type_name() {
  const std::string_view whole = __PRETTY_FUNCTION__;
  const std::size_t first = whole.find("T = ") + 4;
  return whole.substr(first, whole.find_first_of(";]", first) - first);
}

/// The shortest text that reads as the same number.
inline std::string exact_text(float number) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, number);
  (void)error;
  return {text, end};
}

}  // namespace detail

/// @brief The fingerprint of a cache type, its geometry, and the caller's model.
/// @tparam T      storage scalar
/// @tparam Index  a wave_index; the estimation bound is no part of it, since it may change from call to call
template <scalar T, class Index>
std::string make_fingerprint(const geometry& sizes, std::size_t sink_tokens,
                             std::string_view model) {
  using counts = typename Index::cluster_count_type;
  using sizes_of = typename Index::segment_size_type;
  std::ostringstream text;
  text << "scalar " << scalar_traits<T>::name << '\n'
       << "n_layers " << sizes.n_layers << '\n'
       << "n_query_heads " << sizes.n_query_heads << '\n'
       << "n_kv_heads " << sizes.n_kv_heads << '\n'
       << "key_dim " << sizes.key_dim << '\n'
       << "value_dim " << sizes.value_dim << '\n'
       << "scale " << detail::exact_text(sizes.logit_scale()) << '\n'
       << "logit_softcap " << detail::exact_text(sizes.logit_softcap) << '\n'
       << "sink_logits " << sizes.sink_logits.size() << ' '
       << checksum(std::as_bytes(std::span(sizes.sink_logits))) << '\n'
       << "sink_tokens " << sink_tokens << '\n'
       << "segment_size " << sizes_of::prefill << ' ' << sizes_of::decode << '\n'
       << "tokens_per_cluster";
  for (std::size_t level = 0; level < counts::n_levels; ++level) {
    text << ' ' << counts::tokens_at(level);
  }
  text << '\n'
       << "clusterer " << detail::type_name<typename Index::clusterer_type>() << '\n'
       << "model " << model << '\n';
  return std::move(text).str();
}

/// @brief Compares a file's fingerprint with the one that is due.
/// @throw mismatch_error naming the first line that differs, as it is and as it should be
inline void compare_fingerprints(std::string_view seen, std::string_view due,
                                 std::string_view file) {
  while (!seen.empty() || !due.empty()) {
    const auto take_line = [](std::string_view& text) {
      const std::size_t end = text.find('\n');
      const std::string_view line = text.substr(0, end);
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      return line;
    };
    const std::string_view seen_line = take_line(seen);
    const std::string_view due_line = take_line(due);
    if (seen_line != due_line) {
      throw mismatch_error(
          detail::message(file, ": fingerprint: \"", seen_line, "\"; allowed: \"", due_line, "\""));
    }
  }
}

}  // namespace wavekv
