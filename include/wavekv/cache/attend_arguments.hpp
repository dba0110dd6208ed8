// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <tuple>
#include <type_traits>

#include <wavekv/cuda/device_view.hpp>
#include <wavekv/index/concepts.hpp>

/// @file attend_arguments.hpp
/// @brief What may stand behind the required arguments of an attend on a device, in any order: told apart by type.

namespace wavekv::detail {

/// @brief The optional arguments of an attend.
template <class Bound, class Stream, class Workspace>
struct attend_arguments {
  Bound bound;  ///< one of them, or the cache's
  device_view<float, 2> lse{};
  Stream stream{};
  Workspace* workspace = nullptr;  ///< null: none was given
};

/// @brief Whether an argument is one of them; any other would be passed over in silence.
template <class More, class Stream, class Workspace>
concept attend_argument =
    std::is_same_v<std::remove_cv_t<More>, device_view<float, 2>> ||
    std::is_same_v<std::remove_cv_t<More>, Stream> || std::is_same_v<More, Workspace> ||
    estimation_bound<std::remove_cv_t<More>>;

/// @brief The argument as a tuple if it is a bound, else an empty one.
template <class More>
auto if_bound(const More& more) {
  if constexpr (estimation_bound<More>) {
    return std::tie(more);
  } else {
    return std::tuple<>{};
  }
}

/// @brief Puts an argument other than a bound where it belongs.
template <class Bound, class Stream, class Workspace, class More>
void put_argument(attend_arguments<Bound, Stream, Workspace>& sorted, More& more) {
  if constexpr (std::is_same_v<std::remove_cv_t<More>, device_view<float, 2>>) {
    sorted.lse = more;
  } else if constexpr (std::is_same_v<std::remove_cv_t<More>, Stream>) {
    sorted.stream = more;
  } else if constexpr (std::is_same_v<More, Workspace>) {
    sorted.workspace = &more;
  }
}

/// @brief Sorts arguments by their types; of two of a type, the bound is the first, all else the last.
/// @param otherwise  the bound where none is given
template <class Stream, class Workspace, class Default, class... More>
auto attend_arguments_of(const Default& otherwise, More&... more) {
  static_assert((attend_argument<More, Stream, Workspace> && ...),
                "kv_cache: an optional argument is a device_view<float, 2>, a bound, a workspace "
                "that is not const, or the cache's stream_type");
  const auto& bound = std::get<0>(std::tuple_cat(if_bound(more)..., std::tie(otherwise)));
  attend_arguments<std::remove_cvref_t<decltype(bound)>, Stream, Workspace> sorted{bound};
  (put_argument(sorted, more), ...);
  return sorted;
}

}  // namespace wavekv::detail
