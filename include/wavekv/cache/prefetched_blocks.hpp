// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/index/search_input.hpp>

/// @file prefetched_blocks.hpp
/// @brief Blocks that travel to the block cache while an engine computes something else.

namespace wavekv {

/// @brief The reads ahead of one (sequence, layer): begun by start, over by collect. A copy has nothing under way, since
/// the copy of a sequence is another sequence. What fails is forgotten: whoever wants the block will fetch it again.
/// @tparam Reader  a block_reader
template <class Reader>
class prefetched_blocks {
 public:
  prefetched_blocks() = default;
  prefetched_blocks(const prefetched_blocks& /*other*/) noexcept {}
  prefetched_blocks& operator=(const prefetched_blocks& other) noexcept {
    if (this != &other) {
      abandon();
    }
    return *this;
  }
  prefetched_blocks(prefetched_blocks&& other) noexcept
      : reader_(std::exchange(other.reader_, nullptr)), lane_(std::move(other.lane_)) {}
  prefetched_blocks& operator=(prefetched_blocks&&) = delete;
  ~prefetched_blocks() { abandon(); }

  /// @brief Starts reading the blocks that the layer's last step used and that are not in the fast tier, as far as a lane
  /// has room.  @throw std::bad_alloc
  /// @param segments  of the layer; those that are read stay alive until collect or abandon
  template <class Segments>
  void start(Reader& reader, const Segments& segments,
             std::span<const std::vector<used_cluster>> used) {
    collect();
    if (lane_ == nullptr) {
      lane_ = std::make_unique<typename Reader::lane_type>();
    }
    reader_ = &reader;
    Reader::open(*lane_);
    try {
      for (std::size_t head = 0; head < used.size(); ++head) {
        for (const used_cluster& one : used[head]) {
          if (!is_there(one, segments, head)) {
            continue;
          }
          const auto& segment = *segments[one.place];
          if (one.cluster >= segment.head(head).levels[0].n_nodes) {
            continue;  // another segment has taken the address of one that was cut off
          }
          const block which = segment.cluster_block(head, one.cluster);
          if (!reader.tiers().holds(segment.rows(), which)) {
            reader.look_up(*lane_, segment.rows(), which, 0);
          }
        }
      }
      reader.start(*lane_);
    } catch (...) {
      abandon();
      throw;
    }
  }

  /// @brief Blocks until what was started is in the block cache.
  void collect() noexcept {
    if (reader_ == nullptr) {
      return;
    }
    try {
      while (!reader_->next(*lane_).empty()) {}
      (void)reader_->close(*lane_);
      reader_ = nullptr;
    } catch (...) {
      abandon();
    }
  }

  /// @brief Forgets what was started. Blocks: until what is under way has arrived.
  void abandon() noexcept {
    if (reader_ != nullptr) {
      reader_->abandon(*lane_);
      reader_ = nullptr;
    }
  }

 private:
  Reader* reader_ = nullptr;  // while something may be under way
  std::unique_ptr<typename Reader::lane_type> lane_;
};

}  // namespace wavekv
