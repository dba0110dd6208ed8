// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "sliding_window.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include <Eigen/Core>

namespace transformer {
namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using stride = Eigen::OuterStride<>;

constexpr std::size_t block_queries = 64;  // queries whose windows overlap are scored together

/// Softmax over the columns in [first, last); the others become 0.
void masked_softmax(Eigen::Ref<Eigen::RowVectorXf> row, std::size_t first, std::size_t last) {
  auto seen = row.segment(first, last - first).array();
  const float largest = seen.maxCoeff();
  seen = (seen - largest).exp();
  seen /= seen.sum();
  row.head(first).setZero();
  row.tail(row.size() - last).setZero();
}

}  // namespace

sliding_window::sliding_window(attention_shape shape, std::size_t window)
    : shape_(shape), window_(window) {}

void sliding_window::append(std::size_t n, const float* keys, const float* values) {
  const std::size_t token = shape_.n_kv_heads * shape_.head_dim;
  // Dropping moves what stays, so it waits until that costs less than one step per token.
  if (n_held_ >= 2 * window_) {
    const auto n_dropped = static_cast<std::ptrdiff_t>((n_held_ - window_) * token);
    keys_.erase(keys_.begin(), keys_.begin() + n_dropped);
    values_.erase(values_.begin(), values_.begin() + n_dropped);
    n_held_ = window_;
  }
  keys_.insert(keys_.end(), keys, keys + n * token);
  values_.insert(values_.end(), values, values + n * token);
  n_held_ += n;
}

void sliding_window::save(wavekv::byte_writer& to) const {
  const std::size_t n = std::min(n_held_, window_);  // older ones are not seen any more
  const std::size_t n_left_out = (n_held_ - n) * shape_.n_kv_heads * shape_.head_dim;
  to.put(std::uint64_t{n});
  to.put_array(std::span<const float>(keys_).subspan(n_left_out));
  to.put_array(std::span<const float>(values_).subspan(n_left_out));
}

void sliding_window::load(wavekv::byte_reader& from) {
  const auto n = from.get<std::uint64_t>();
  if (n > window_) from.fail("holds more tokens than the window");
  std::vector<float> keys(n * shape_.n_kv_heads * shape_.head_dim);
  std::vector<float> values(keys.size());
  from.get_array(std::span<float>(keys));
  from.get_array(std::span<float>(values));
  n_held_ = n;
  keys_ = std::move(keys);
  values_ = std::move(values);
}

void sliding_window::append_and_attend(std::size_t n, const float* queries, const float* keys,
                                       const float* values, float* out) {
  append(n, keys, values);
  const std::size_t n_blocks = (n + block_queries - 1) / block_queries;
#pragma omp parallel for collapse(2) schedule(static) if (n > 1)
  for (std::size_t block = 0; block < n_blocks; ++block) {
    for (std::size_t head = 0; head < shape_.n_query_heads; ++head) {
      const std::size_t first = block * block_queries;
      attend_block(head, first, std::min(block_queries, n - first), n, queries, out);
    }
  }
}

void sliding_window::attend_block(std::size_t head, std::size_t first_query, std::size_t n_queries,
                                  std::size_t n_tokens, const float* queries, float* out) const {
  const std::size_t dim = shape_.head_dim;
  const std::size_t kv_stride = shape_.n_kv_heads * dim;
  const std::size_t query_stride = shape_.n_query_heads * dim;
  const std::size_t kv_head = head / (shape_.n_query_heads / shape_.n_kv_heads);

  // Held token of the first query, and the held tokens that the block sees between them.
  const std::size_t at = n_held_ - n_tokens + first_query;
  const std::size_t first_seen = at + 1 > window_ ? at + 1 - window_ : 0;
  const std::size_t n_seen = at + n_queries - first_seen;

  const std::size_t kv_offset = first_seen * kv_stride + kv_head * dim;
  const std::size_t query_offset = first_query * query_stride + head * dim;
  const Eigen::Map<const row_major, 0, stride> q(queries + query_offset, n_queries, dim,
                                                 stride(query_stride));
  const Eigen::Map<const row_major, 0, stride> k(keys_.data() + kv_offset, n_seen, dim,
                                                 stride(kv_stride));
  const Eigen::Map<const row_major, 0, stride> v(values_.data() + kv_offset, n_seen, dim,
                                                 stride(kv_stride));
  Eigen::Map<row_major, 0, stride> o(out + query_offset, n_queries, dim, stride(query_stride));

  row_major weights = (q * k.transpose()) / std::sqrt(static_cast<float>(dim));
  for (std::size_t i = 0; i < n_queries; ++i) {
    const std::size_t last = at + i + 1 - first_seen;  // the query's own key is the last it sees
    masked_softmax(weights.row(i), last > window_ ? last - window_ : 0, last);
  }
  o.noalias() = weights * v;
}

}  // namespace transformer
