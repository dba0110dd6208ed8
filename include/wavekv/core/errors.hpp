// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

/// @file errors.hpp
/// @brief Typed errors. Every message states the value seen and the value allowed; after a throw the
/// object that threw is as it was before the call (strong guarantee).

namespace wavekv {

/// @brief Base of every exception the library throws on purpose. std::bad_alloc passes through as it is.
struct error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// @brief A view's extents or strides do not fit the geometry or each other.
struct shape_error : error {
  using error::error;
};

/// @brief An element is not finite, or does not fit the storage scalar (an f16 overflow, say).
struct value_error : error {
  using error::error;
};

/// @brief The sequence is unknown (never created, or released) or named where it may not be.
struct sequence_error : error {
  using error::error;
};

/// @brief A limit set by the user (tokens of a sequence, number of sequences) would be passed.
struct capacity_error : error {
  using error::error;
};

/// @brief A geometry, an option or a bound's parameter lies outside its allowed range.
struct config_error : error {
  using error::error;
};

/// @brief A store or file could not be read or written.
struct io_error : error {
  using error::error;
};

/// @brief A file is not what was written to it: cut short, changed, of another version, or never a file of this kind.
struct format_error : io_error {
  using io_error::io_error;
};

/// @brief A saved sequence belongs to another model, or to a cache of another type.
struct mismatch_error : io_error {
  using io_error::io_error;
};

namespace detail {

/// @brief Joins the parts of a message; only called when something is already wrong.
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return std::move(text).str();
}

}  // namespace detail
}  // namespace wavekv
