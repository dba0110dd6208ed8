// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <span>
#include <type_traits>
#include <utility>

#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/token_run.hpp>

/// @file concepts.hpp
/// @brief The slots of a wave_buffer as concepts. `tests/conformance` holds the law of each.

namespace wavekv {

/// @brief One block: K and V of one cluster, stored together, as a run of elements of a segment's rows.
/// The unit of placement, eviction and transfer.
struct block {
  std::size_t index = 0;     ///< among the blocks of its segment, in the order of their rows
  std::size_t offset = 0;    ///< first element, from the start of the segment's rows
  std::size_t n_tokens = 0;  ///< [n_tokens, key_dim] keys, then [n_tokens, value_dim] values
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

/// @brief A read of the slow tier that is ready to be made, by calling it or, where it names a file, by other means.
/// A view: its store, its region and its memory outlive it.
struct slow_read {
  /// @brief Makes the read. Blocks: until the bytes are here.  @throw io_error
  void operator()() const { make(*this); }

  void (*make)(const slow_read&) = nullptr;  ///< what calling it does
  const void* store = nullptr;
  const void* region = nullptr;
  std::uint64_t offset = 0;       ///< first byte of the region
  std::span<std::byte> to;        ///< where the bytes go, all of them
  int file = -1;                  ///< a descriptor to read from instead, or -1
  std::uint64_t file_offset = 0;  ///< first byte of the file
};

/// @brief How blocks arrive that are missing in the fast tier.
///
/// | expression               | returns       | semantics                                                          |
/// |--------------------------|---------------|--------------------------------------------------------------------|
/// | `T()`                    |               | an engine with nothing under way                                   |
/// | `t.start(read, tag)`     | `void`        | makes a slow_read, now or later, on any thread; throws no io_error |
/// | `t.next()`               | `std::size_t` | waits until some read is over and returns its tag; each is returned once, in any order; undefined when none is under way |
/// | `t.failure()`            | `std::exception_ptr` | what the read that next() named last threw, or null; noexcept |
///
/// One engine serves one reader at a time, and is destroyed when nothing is under way.
template <class T>
concept transfer_engine =
    std::default_initializable<T> && requires(T& engine, const slow_read& read, std::size_t tag) {
      { engine.start(read, tag) } -> std::same_as<void>;
      { engine.next() } -> std::same_as<std::size_t>;
      { engine.failure() } noexcept -> std::same_as<std::exception_ptr>;
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
/// | `s.alignment()`                | `std::size_t` | reads whose offset, size and memory are multiples of it are the cheapest, and may reach past a region's end up to the next multiple; at most 4,096 |
/// | `s.flush()`                    | `void`   | returns once all that was written survives the process; throws io_error |
///
/// | `s.in_file(region)`            | `file_place` | optional: where a region begins in which file, for engines that read files on their own |
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
      { store.alignment() } noexcept -> std::same_as<std::size_t>;
      { store.flush() } -> std::same_as<void>;
    };

/// @brief Where a region lies in a file.
struct file_place {
  int file = -1;             ///< an open descriptor
  std::uint64_t offset = 0;  ///< first byte
};

/// @brief A block_store whose regions lie in files.
template <class S>
concept file_backed = block_store<S> && requires(const S& store, const typename S::region& region) {
  { store.in_file(region) } noexcept -> std::same_as<file_place>;
};

/// @brief A block_store that can take parts of files of another's making as regions, without a copy: `s.open(path)` opens
/// one, `s.adopt(opened, offset, n_bytes)` takes a part that begins at a multiple of 4,096 bytes. Both throw io_error.
template <class S>
concept adopting_store =
    block_store<S> && requires(const S& store, const std::filesystem::path& path) {
      {
        store.adopt(store.open(path), std::uint64_t{}, std::size_t{})
      } -> std::same_as<typename S::region>;
    };

namespace detail {
/// @brief Stands for a callable that takes runs, in concepts.
template <class T>
struct any_run_taker {
  void operator()(const token_run<T>& /*run*/) const {}
};
}  // namespace detail

/// @brief Keeps the rows of sealed segments, in whichever tier.
///
/// | expression                      | returns     | semantics                                                        |
/// |---------------------------------|-------------|------------------------------------------------------------------|
/// | `S::handle`                     | type        | names kept rows; movable, default-constructible; giving it up gives up the rows |
/// | `S::lease`                      | type        | a block found in the fast tier; trivially copyable, true when it was found |
/// | `S::always_fast`                | `bool`      | constant: true promises that every block is always found         |
/// | `s.keep(rows, blocks)`          | `handle`    | takes the rows of a sealed segment, cut into blocks; may wait for room; throws io_error, and keeps nothing then |
/// | `s.look_up(handle, block)`      | `lease`     | finds a block, which then stays where it is until it is released; noexcept |
/// | `s.for_runs(lease, n_tokens, run)` | `void`   | calls run(token_run) for the tokens of a found block, in order   |
/// | `s.release(leases)`             | `void`      | gives up a span of leases; noexcept                              |
/// | `s.copy(handle, offset, to)`    | `void`      | copies elements [offset, offset + to.size()) of the rows from whichever tier; throws io_error |
///
/// All of them may be called from several threads at once.
template <class S, class T>
concept block_tiers =
    requires(S& tiers, const typename S::handle& handle, aligned_storage<T> rows,
             std::span<const block> blocks, block which, typename S::lease lease,
             std::span<const typename S::lease> leases, std::span<T> to, std::size_t n) {
      requires std::movable<typename S::handle> && std::default_initializable<typename S::handle>;
      requires std::is_trivially_copyable_v<typename S::lease>;
      { S::always_fast } -> std::convertible_to<bool>;
      { tiers.keep(std::move(rows), blocks) } -> std::same_as<typename S::handle>;
      { tiers.look_up(handle, which) } noexcept -> std::same_as<typename S::lease>;
      { static_cast<bool>(lease) };
      { tiers.for_runs(lease, n, detail::any_run_taker<T>{}) } -> std::same_as<void>;
      { tiers.release(leases) } noexcept -> std::same_as<void>;
      { tiers.copy(handle, n, to) } -> std::same_as<void>;
    };

/// @brief What block_tiers need besides, where a block may be missing in the fast tier.
///
/// | expression                      | returns     | semantics                                                        |
/// |---------------------------------|-------------|------------------------------------------------------------------|
/// | `s.holds(handle, block)`        | `bool`      | whether look_up would find it, most likely; noexcept             |
/// | `s.alignment()`                 | `std::size_t` | reads begin and end at multiples of it, in the rows and in memory, which may reach past their end |
/// | `s.fetch(handle, offset, to)`   | `slow_read` | a read of bytes [offset, offset + to.size()) of the rows         |
/// | `s.check(handle, block, rows)`  | `void`      | throws io_error where rows that arrived are not what was kept    |
/// | `s.admit(handle, block, rows)`  | `void`      | offers a block that arrived to the block cache; noexcept         |
template <class S, class T>
concept slow_block_tiers =
    block_tiers<S, T> && requires(S& tiers, const typename S::handle& handle, block which,
                                  std::uint64_t offset, std::span<std::byte> to, const T* rows) {
      { tiers.holds(handle, which) } noexcept -> std::same_as<bool>;
      { tiers.alignment() } noexcept -> std::same_as<std::size_t>;
      { tiers.fetch(handle, offset, to) } -> std::same_as<slow_read>;
      { tiers.check(handle, which, rows) } -> std::same_as<void>;
      { tiers.admit(handle, which, rows) } noexcept -> std::same_as<void>;
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

template <class S, class T>
consteval bool are_tiers() {
  if constexpr (block_tiers<S, T>) {
    return S::always_fast || slow_block_tiers<S, T>;
  } else {
    return false;
  }
}
}  // namespace detail

/// @brief Which blocks live in which tier.
///
/// | expression                             | returns | semantics                                              |
/// |----------------------------------------|---------|--------------------------------------------------------|
/// | `P::options_type`                      | type    | budgets, and so on; default-constructible; `validate()` throws config_error |
/// | `typename P::template tiers<T, E>`     | type    | block_tiers of T that evict by E, and slow_block_tiers unless always_fast; made from (options, key_dim, value_dim) |
template <class P>
concept placement_policy =
    requires(const typename P::options_type& options) {
      { options.validate() } -> std::same_as<void>;
      typename P::template tiers<bf16, detail::any_eviction>;
    } && std::default_initializable<typename P::options_type> &&
    detail::are_tiers<typename P::template tiers<bf16, detail::any_eviction>, bf16>() &&
    std::constructible_from<typename P::template tiers<bf16, detail::any_eviction>,
                            const typename P::options_type&, std::size_t, std::size_t>;

}  // namespace wavekv
