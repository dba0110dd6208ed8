// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <array>
#include <cstdint>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/cache/token_rows.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/random.hpp>
#include <wavekv/core/tensor_view.hpp>

using wavekv::aligned_storage;

TEST_CASE("aligned_storage: alignment, moves, sizes that cannot be") {
  for (const std::size_t n : {1U, 63U, 64U, 1000U, 600000U}) {
    aligned_storage<float> storage(n);
    const bool huge = n * sizeof(float) >= aligned_storage<float>::huge_page_bytes;
    CHECK(reinterpret_cast<std::uintptr_t>(storage.data()) % (huge ? 2U * 1024U * 1024U : 64U) ==
          0);
    CHECK(storage.size() == n);
    CHECK(storage.bytes() == n * sizeof(float));
    storage[0] = 1.0F;
    storage[n - 1] = 2.0F;
    const float* data = storage.data();
    aligned_storage<float> moved(std::move(storage));
    CHECK(moved.data() == data);
    CHECK(storage.size() == 0);  // NOLINT(bugprone-use-after-move): a moved-from storage is empty
    CHECK(storage.data() == nullptr);
    storage = std::move(moved);
    CHECK(storage.data() == data);
    CHECK(storage[n - 1] == 2.0F);
  }
  CHECK(aligned_storage<float>(0).data() == nullptr);
  CHECK_THROWS_AS(aligned_storage<float>(SIZE_MAX / 4), std::bad_alloc);
  CHECK_THROWS_AS(aligned_storage<float>(SIZE_MAX), std::bad_alloc);
}

TEST_CASE("philox: the known answers of its authors") {
  using words = std::array<std::uint32_t, 4>;
  CHECK(wavekv::philox(0, {0, 0, 0, 0}) == words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(wavekv::philox(UINT64_MAX, {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}) ==
        words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(wavekv::philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
        words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  CHECK(wavekv::unit_float(0) == 0.0F);
  CHECK(wavekv::unit_float(UINT32_MAX) < 1.0F);
  CHECK(wavekv::unit_float(1U << 31U) == 0.5F);
}

TEST_CASE("tensor_view: strides, slices, layouts") {
  std::vector<int> memory(24);
  for (int i = 0; i < 24; ++i) memory[static_cast<std::size_t>(i)] = i;
  const auto rows = wavekv::nhd(memory.data(), 2, 3, 4);
  CHECK(rows(1, 2, 3) == 23);
  CHECK(rows(1, 0, 0) == 12);
  const auto heads = wavekv::hnd(memory.data(), 3, 2, 4);
  CHECK(heads.extent(0) == 2);
  CHECK(heads.extent(1) == 3);
  CHECK(heads(1, 0, 0) == 4);  // token 1 of head 0
  CHECK(heads(0, 1, 0) == 8);  // token 0 of head 1
  const auto part = rows.slice(1, 1);
  CHECK(part.extent(0) == 1);
  CHECK(part(0, 2, 3) == 23);
  const wavekv::tensor_view<const int, 3> constant = rows;
  CHECK(constant.data() == memory.data());
  const wavekv::tensor_view<int, 3> none;
  CHECK(none.empty());
  CHECK(none.extent(0) == 0);
  CHECK(none.slice(0, 0).empty());
}

TEST_CASE("token_rows: grows, drops, copies; rows stay what they were") {
  wavekv::token_rows<float> rows(2, 3, 5);
  const auto fill = [&](std::size_t from, std::size_t n) {
    rows.reserve(from + n);
    for (std::size_t head = 0; head < 2; ++head) {
      for (std::size_t t = from; t < from + n; ++t) {
        for (std::size_t i = 0; i < 3; ++i)
          rows.keys(head)[t * 3 + i] = static_cast<float>(t * 100 + head * 10 + i);
        for (std::size_t i = 0; i < 5; ++i)
          rows.values(head)[t * 5 + i] = -static_cast<float>(t * 100 + head * 10 + i);
      }
    }
    rows.commit(n);
  };
  const auto check = [](const wavekv::token_rows<float>& seen, std::size_t first, std::size_t n) {
    REQUIRE(seen.size() == n);
    for (std::size_t head = 0; head < 2; ++head) {
      for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t i = 0; i < 3; ++i)
          REQUIRE(seen.keys(head)[t * 3 + i] ==
                  static_cast<float>((first + t) * 100 + head * 10 + i));
        for (std::size_t i = 0; i < 5; ++i)
          REQUIRE(seen.values(head)[t * 5 + i] ==
                  -static_cast<float>((first + t) * 100 + head * 10 + i));
      }
    }
  };
  fill(0, 10);
  check(rows, 0, 10);
  fill(10, 300);  // grows
  check(rows, 0, 310);
  const wavekv::token_rows<float> copy = rows;
  rows.drop_front(100);
  check(rows, 100, 210);
  rows.truncate(50);
  check(rows, 100, 50);
  check(copy, 0, 310);
  rows = copy;
  check(rows, 0, 310);
  rows.drop_front(310);
  CHECK(rows.size() == 0);
  const std::size_t capacity = rows.capacity();
  rows.reserve(10);
  CHECK(rows.capacity() == capacity);
}
