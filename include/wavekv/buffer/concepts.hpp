// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>

/// @file concepts.hpp
/// @brief The slots of a wave_buffer as concepts. `tests/conformance` holds the law of each.

namespace wavekv {

/// @brief One block: K and V of one cluster, stored together, as a run of elements of a segment's rows.
/// The unit of placement, eviction and transfer.
struct block {
  std::size_t offset = 0;      ///< first element, from the start of the segment's rows
  std::size_t n_elements = 0;  ///< n_tokens · (key_dim + value_dim)
};

/// @brief Which of a fixed number of fast-tier slots is reused next.
///
/// | expression       | returns       | semantics                                                          |
/// |------------------|---------------|--------------------------------------------------------------------|
/// | `E(n_slots)`     |               | all slots free                                                     |
/// | `e.insert(slot)` | `void`        | a free slot was filled; noexcept                                   |
/// | `e.touch(slot)`  | `void`        | a filled slot was used; noexcept                                   |
/// | `e.victim()`     | `std::size_t` | the filled slot to reuse; it is free afterwards; undefined when no slot is filled; noexcept |
/// | `e.erase(slot)`  | `void`        | a filled slot became free without being chosen; noexcept           |
template <class E>
concept eviction_policy = std::movable<E> && std::constructible_from<E, std::size_t> &&
                          requires(E& policy, std::size_t slot) {
                            { policy.insert(slot) } noexcept -> std::same_as<void>;
                            { policy.touch(slot) } noexcept -> std::same_as<void>;
                            { policy.victim() } noexcept -> std::same_as<std::size_t>;
                            { policy.erase(slot) } noexcept -> std::same_as<void>;
                          };

/// @brief How a missing block arrives.
///
/// | expression        | returns | semantics                                                              |
/// |-------------------|---------|------------------------------------------------------------------------|
/// | `T()`             |         | an engine with nothing under way                                       |
/// | `t.start(fetch)`  | `void`  | calls `fetch()`, which brings one block, now or later, on any thread   |
/// | `t.wait()`        | `void`  | returns once every started fetch has returned; rethrows the first exception of one |
///
/// One engine serves one reader at a time.
template <class T>
concept transfer_engine = std::default_initializable<T> && requires(T& engine, void (*fetch)()) {
  { engine.start(fetch) } -> std::same_as<void>;
  { engine.wait() } -> std::same_as<void>;
};

/// @brief A slow tier: keeps runs of bytes, and reads parts of them.
///
/// | expression                     | returns  | semantics                                                              |
/// |--------------------------------|----------|------------------------------------------------------------------------|
/// | `S::options_type`              | type     | where it is, and so on; default-constructible; `validate()` throws config_error |
/// | `S(options)`                   |          | a store that holds nothing; throws io_error when it cannot be made     |
/// | `S::region`                    | type     | names a run; movable; giving it up gives up the bytes                  |
/// | `s.write(bytes)`               | `region` | takes a copy of the bytes; throws io_error, and holds nothing then     |
/// | `s.read(region, offset, to)`   | `void`   | copies bytes [offset, offset + to.size()) of a region; throws io_error |
/// | `s.flush()`                    | `void`   | returns once all that was written survives the process; throws io_error |
///
/// All of them may be called from several threads at once.
template <class S>
concept block_store =
    std::default_initializable<typename S::options_type> && std::movable<typename S::region> &&
    std::constructible_from<S, const typename S::options_type&> &&
    requires(S& store, const typename S::region& region, const typename S::options_type& options,
             std::span<const std::byte> from, std::uint64_t offset, std::span<std::byte> to) {
      { options.validate() } -> std::same_as<void>;
      { store.write(from) } -> std::same_as<typename S::region>;
      { store.read(region, offset, to) } -> std::same_as<void>;
      { store.flush() } -> std::same_as<void>;
    };

/// @brief Keeps the rows of sealed segments, in whichever tier.
///
/// | expression                      | returns     | semantics                                                        |
/// |---------------------------------|-------------|------------------------------------------------------------------|
/// | `S::handle`                     | type        | names kept rows; movable; giving it up gives up the rows         |
/// | `S::always_fast`                | `bool`      | constant: true promises that lookup never answers null           |
/// | `s.keep(rows)`                  | `handle`    | takes the rows of a sealed segment                               |
/// | `s.lookup(handle, block)`       | `const T*`  | the block in the fast tier, or null; noexcept; valid until the step ends |
/// | `s.fetch(handle, block, to)`    | `void`      | copies a block from the slow tier to `to`; throws io_error       |
/// | `s.admit(handle, block, rows)`  | `void`      | offers a fetched block to the block cache; noexcept              |
///
/// All of them may be called from several threads at once.
template <class S, class T>
concept block_tiers = requires(S& tiers, const typename S::handle& handle, aligned_storage<T> rows,
                               block which, T* to, const T* fetched) {
  requires std::movable<typename S::handle>;
  { S::always_fast } -> std::convertible_to<bool>;
  { tiers.keep(std::move(rows)) } -> std::same_as<typename S::handle>;
  { tiers.lookup(handle, which) } noexcept -> std::same_as<const T*>;
  { tiers.fetch(handle, which, to) } -> std::same_as<void>;
  { tiers.admit(handle, which, fetched) } noexcept -> std::same_as<void>;
};

namespace detail {
/// @brief An eviction policy for checking templates that take one.
struct any_eviction {
  explicit any_eviction(std::size_t /*n_slots*/) noexcept {}
  void insert(std::size_t /*slot*/) noexcept {}
  void touch(std::size_t /*slot*/) noexcept {}
  std::size_t victim() noexcept { return 0; }
  void erase(std::size_t /*slot*/) noexcept {}
};
}  // namespace detail

/// @brief Which blocks live in which tier.
///
/// | expression                             | returns | semantics                                              |
/// |----------------------------------------|---------|--------------------------------------------------------|
/// | `typename P::template tiers<T, E>`     | type    | default-constructible block_tiers of T that evict by E   |
template <class P>
concept placement_policy =
    requires { typename P::template tiers<bf16, detail::any_eviction>; } &&
    block_tiers<typename P::template tiers<bf16, detail::any_eviction>, bf16> &&
    std::default_initializable<typename P::template tiers<bf16, detail::any_eviction>>;

}  // namespace wavekv
