// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/layer_writer.cuh>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/index/segment.hpp>

/// @file layer_transfer.cuh
/// @brief A layer from the device to the host's own form and back: what is saved by one backend is loaded by the other.

namespace wavekv::device {

/// @brief Moves layers between a device and the host. Nothing is clustered again; both forms hold the same trees.
/// @tparam T       storage scalar
/// @tparam Index   a wave_index
/// @tparam Buffer  a wave_buffer whose placement is resident
template <scalar T, class Index, class Buffer, device_runtime Runtime>
class layer_transfer {
 public:
  using stream_type = typename Runtime::stream_type;
  using writer_type = layer_writer<T, Index, Runtime>;
  using device_layer = typename writer_type::layer_type;
  using reader_type = block_reader<T, Buffer>;
  using host_segment = segment<T, typename reader_type::handle>;
  using host_layer = wavekv::layer_state<T, host_segment>;

  /// @param sizes  outlives this, as writer and reader do
  layer_transfer(const geometry& sizes, writer_type& writer, reader_type& reader,
                 std::size_t sink_tokens)
      : sizes_(sizes), writer_(writer), reader_(reader), sink_tokens_(sink_tokens) {}

  /// @brief A layer without tokens, as `download` fills and a file's reader expects it.
  [[nodiscard]] host_layer empty() const {
    host_layer layer;
    layer.sink = layer.tail = token_rows<T>(sizes_.n_kv_heads, sizes_.key_dim, sizes_.value_dim);
    if constexpr (writer_type::wants_queries) {
      layer.metrics.assign(sizes_.n_kv_heads, query_metric(sizes_.key_dim));
    }
    return layer;
  }

  /// @brief A copy of a layer on the host; of a seal in progress only the tokens, which are in the tail.
  /// Blocks: until copied.  @throw cuda_error, std::bad_alloc
  [[nodiscard]] host_layer download(const device_layer& from, stream_type stream) {
    host_layer to = empty();
    const bool is_sealed = !from.segments.empty();
    const std::size_t length = from.length();
    const std::size_t n_sink = std::min<std::size_t>(length, sink_tokens_);
    const std::vector<T> sink =
        copied(from.view.sink, sizes_.n_kv_heads * sink_tokens_ * width(), stream);
    const std::vector<T> ring =
        copied(from.view.tail.rows, sizes_.n_kv_heads * from.view.tail.capacity * width(), stream);
    const auto row = [&](std::size_t head, std::size_t position) {
      return position < n_sink ? sink.data() + (head * sink_tokens_ + position) * width()
                               : ring.data() + (head * from.view.tail.capacity +
                                                position % from.view.tail.capacity) *
                                                   width();
    };
    const auto put = [&](token_rows<T>& rows, std::size_t first, std::size_t n) {
      rows.reserve(n);
      for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
        for (std::size_t i = 0; i < n; ++i) {
          const T* const source = row(head, first + i);
          std::copy_n(source, sizes_.key_dim, rows.keys(head) + i * sizes_.key_dim);
          std::copy_n(source + sizes_.key_dim, sizes_.value_dim,
                      rows.values(head) + i * sizes_.value_dim);
        }
      }
      rows.commit(n);
    };
    // The host fills the sink when it seals for the first time.
    put(to.sink, 0, is_sealed ? n_sink : 0);
    const std::size_t tail_begin = is_sealed ? from.view.tail_begin : 0;
    put(to.tail, tail_begin, length - tail_begin);
    for (const auto& segment : from.segments) {
      to.segments.push_back(download_segment(segment->view, stream));
    }
    download_learnt(from, to, stream);
    return to;
  }

  /// @brief A layer on the device with what a host layer holds.
  /// Blocks: no, but for the copies from the host.  @throw cuda_error, std::bad_alloc
  [[nodiscard]] device_layer upload(const host_layer& from, stream_type stream) {
    device_layer to = writer_.make(stream);
    for (const auto& segment : from.segments) {
      writer_.adopt(to, upload_segment(*segment, stream), stream);
    }
    const std::size_t length = from.length();
    const std::size_t before_tail = length - from.tail.size();
    writer_.reserve(to, length > to.view.tail_begin ? length - to.view.tail_begin : 0, stream);
    std::vector<T> sink(sizes_.n_kv_heads * sink_tokens_ * width());
    std::vector<T> ring(sizes_.n_kv_heads * to.view.tail.capacity * width());
    const auto put = [&](const token_rows<T>& rows, std::size_t first) {
      for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
        for (std::size_t i = 0; i < rows.size(); ++i) {
          const std::size_t position = first + i;
          T* const row =
              position < sink_tokens_
                  ? sink.data() + (head * sink_tokens_ + position) * width()
                  : ring.data() +
                        (head * to.view.tail.capacity + position % to.view.tail.capacity) * width();
          std::copy_n(rows.keys(head) + i * sizes_.key_dim, sizes_.key_dim, row);
          std::copy_n(rows.values(head) + i * sizes_.value_dim, sizes_.value_dim,
                      row + sizes_.key_dim);
        }
      }
    };
    put(from.sink, 0);
    put(from.tail, before_tail);
    copy_in(to.view.sink, sink, stream);
    copy_in(to.view.tail.rows, ring, stream);
    upload_learnt(from, to, stream);
    writer_.set_length(to, length, stream);
    return to;
  }

 private:
  using cluster_count_type = typename Index::cluster_count_type;
  static constexpr std::size_t n_levels = cluster_count_type::n_levels;

  [[nodiscard]] std::size_t width() const noexcept { return sizes_.key_dim + sizes_.value_dim; }

  template <class Element>
  std::vector<Element> copied(const Element* from, std::size_t n, stream_type stream) {
    std::vector<Element> to(n);
    if (from != nullptr) {
      writer_.runtime().copy_out(to.data(), from, n * sizeof(Element), stream);
    }
    return to;
  }

  template <class Element>
  void copy_in(Element* to, const std::vector<Element>& from, stream_type stream) {
    writer_.runtime().copy_in(to, from.data(), from.size() * sizeof(Element), stream);
  }

  // n rows of key and value each, to n keys behind each other and then n values; and back.
  T* part(const T* rows, std::size_t n, T* to) const {
    for (std::size_t i = 0; i < n; ++i) {
      to = std::copy_n(rows + i * width(), sizes_.key_dim, to);
    }
    for (std::size_t i = 0; i < n; ++i) {
      to = std::copy_n(rows + i * width() + sizes_.key_dim, sizes_.value_dim, to);
    }
    return to;
  }
  void join(const T* from, std::size_t n, T* rows) const {
    for (std::size_t i = 0; i < n; ++i) {
      T* const value = std::copy_n(from + i * sizes_.key_dim, sizes_.key_dim, rows + i * width());
      std::copy_n(from + n * sizes_.key_dim + i * sizes_.value_dim, sizes_.value_dim, value);
    }
  }

  std::shared_ptr<const host_segment> download_segment(const segment_view<T>& from,
                                                       stream_type stream) {
    typename host_segment::parts parts;
    const std::size_t n = from.n_tokens;
    parts.n_tokens = n;
    parts.n_levels = n_levels;
    parts.heads.resize(sizes_.n_kv_heads);
    parts.token_rows = aligned_storage<T>(sizes_.n_kv_heads * n * width());
    const std::vector<std::uint16_t> order = copied(from.order, sizes_.n_kv_heads * n, stream);
    const std::vector<float> spread = copied(from.value_spread, sizes_.n_kv_heads, stream);
    const std::vector<T> rows = copied(from.rows, sizes_.n_kv_heads * n * width(), stream);
    for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
      parts.heads[head].order.assign(order.begin() + static_cast<std::ptrdiff_t>(head * n),
                                     order.begin() + static_cast<std::ptrdiff_t>((head + 1) * n));
      parts.heads[head].value_spread = spread[head];
    }
    for (std::size_t l = n_levels;
         l-- > 0;) {  // from the top: families are those of the level above
      download_level(from.levels[l], l, parts, stream);
    }
    for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
      T* to = parts.token_rows.data() + head * n * width();
      const auto& first = parts.heads[head].first_child[0];
      for (std::size_t c = 0; c + 1 < first.size(); ++c) {
        to = part(rows.data() + (head * n + first[c]) * width(), first[c + 1] - first[c], to);
      }
    }
    return std::make_shared<const host_segment>(
        from.first_token, sizes_.key_dim, sizes_.value_dim, std::move(parts),
        [&](aligned_storage<T> kept, std::span<const block> blocks) {
          return reader_.keep(std::move(kept), blocks);
        });
  }

  void download_level(const level_view<T>& from, std::size_t l, typename host_segment::parts& parts,
                      stream_type stream) {
    const std::size_t n_heads = sizes_.n_kv_heads;
    const std::size_t capacity = from.capacity;
    const std::vector<T> rows = copied(from.rows, n_heads * capacity * width(), stream);
    const std::vector<float> sizes = copied(from.sizes, n_heads * capacity, stream);
    const std::vector<float> dispersions = copied(from.dispersions, n_heads * capacity, stream);
    const std::vector<std::uint32_t> links =
        copied(from.first_child, n_heads * (capacity + 1), stream);
    const std::vector<std::uint32_t> n_nodes = copied(from.n_nodes, n_heads, stream);
    for (std::size_t head = 0; head < n_heads; ++head) {
      auto& to = parts.heads[head];
      const std::size_t n = n_nodes[head];
      const float* const size = sizes.data() + head * capacity;
      const float* const dispersion = dispersions.data() + head * capacity;
      const std::uint32_t* const link = links.data() + head * (capacity + 1);
      to.n_nodes[l] = static_cast<std::uint32_t>(n);
      to.size[l].assign(size, size + n);
      to.dispersion[l].assign(dispersion, dispersion + n);
      to.first_child[l].assign(link, link + n + 1);
      to.rows[l] = aligned_storage<T>(n * width());
      const T* const first_row = rows.data() + head * capacity * width();
      T* at = to.rows[l].data();
      if (l + 1 == n_levels) {
        part(first_row, n, at);
        continue;
      }
      const auto& family = to.first_child[l + 1];
      for (std::size_t p = 0; p + 1 < family.size(); ++p) {
        at = part(first_row + family[p] * width(), family[p + 1] - family[p], at);
      }
    }
  }

  std::shared_ptr<typename writer_type::sealed_type> upload_segment(const host_segment& from,
                                                                    stream_type stream) {
    auto to = writer_.memory().make_segment(from.first_token(), from.n_tokens(), stream);
    const segment_view<T>& view = to->view;
    const std::size_t n = from.n_tokens();
    const std::size_t n_heads = sizes_.n_kv_heads;
    std::vector<T> rows(n_heads * n * width());
    std::vector<std::uint16_t> order(n_heads * n);
    std::vector<float> spread(n_heads);
    std::vector<T> packed(n * width());
    for (std::size_t head = 0; head < n_heads; ++head) {
      const head_index<T>& index = from.head(head);
      std::copy_n(index.order, n, order.data() + head * n);
      spread[head] = index.value_spread;
      reader_.tiers().copy(from.rows(), head * n * width(), std::span<T>(packed));
      for (std::uint32_t c = 0; c < index.levels[0].n_nodes; ++c) {
        const std::size_t first = index.levels[0].first_child[c];
        join(packed.data() + first * width(), index.levels[0].first_child[c + 1] - first,
             rows.data() + (head * n + first) * width());
      }
    }
    copy_in(view.rows, rows, stream);
    copy_in(view.order, order, stream);
    copy_in(view.value_spread, spread, stream);
    for (std::size_t l = 0; l < n_levels; ++l) {
      upload_level(from, l, view.levels[l], stream);
    }
    return to;
  }

  void upload_level(const host_segment& from, std::size_t l, const level_view<T>& to,
                    stream_type stream) {
    const std::size_t n_heads = sizes_.n_kv_heads;
    const std::size_t capacity = to.capacity;
    std::vector<T> rows(n_heads * capacity * width());
    std::vector<float> sizes(n_heads * capacity);
    std::vector<float> dispersions(n_heads * capacity);
    std::vector<std::uint32_t> links(n_heads * (capacity + 1));
    std::vector<std::uint32_t> n_nodes(n_heads);
    for (std::size_t head = 0; head < n_heads; ++head) {
      const tree_level<T>& level = from.head(head).levels[l];
      n_nodes[head] = level.n_nodes;
      std::copy_n(level.size, level.n_nodes, sizes.data() + head * capacity);
      std::copy_n(level.dispersion, level.n_nodes, dispersions.data() + head * capacity);
      std::copy_n(level.first_child, level.n_nodes + 1, links.data() + head * (capacity + 1));
      T* const first_row = rows.data() + head * capacity * width();
      if (l + 1 == n_levels) {
        join(level.rows, level.n_nodes, first_row);
        continue;
      }
      const tree_level<T>& above = from.head(head).levels[l + 1];
      for (std::uint32_t p = 0; p < above.n_nodes; ++p) {
        const std::size_t first = above.first_child[p];
        join(level.rows + first * width(), above.first_child[p + 1] - first,
             first_row + first * width());
      }
    }
    copy_in(to.rows, rows, stream);
    copy_in(to.sizes, sizes, stream);
    copy_in(to.dispersions, dispersions, stream);
    copy_in(to.first_child, links, stream);
    copy_in(to.n_nodes, n_nodes, stream);
  }

  void download_learnt(const device_layer& from, host_layer& to, stream_type stream) {
    const std::size_t key_dim = sizes_.key_dim;
    if (from.view.learnt.products != nullptr) {
      const std::size_t matrix = key_dim * width();
      const std::vector<float> products =
          copied(from.view.learnt.products, learnt_view::n_products(writer_.shape()), stream);
      const std::vector<float> weights =
          copied(from.view.learnt.weights, sizes_.n_kv_heads * n_levels, stream);
      std::vector<head_covariances> learnt(sizes_.n_kv_heads);
      for (std::size_t i = 0; i < weights.size(); ++i) {
        if (weights[i] > 1e-30F) {
          cluster_covariance& known = learnt[i / n_levels][i % n_levels];
          known.weight = static_cast<double>(weights[i]);
          known.matrix.resize(matrix);
          std::transform(products.data() + i * matrix, products.data() + (i + 1) * matrix,
                         known.matrix.data(), [&](float x) { return x / weights[i]; });
        }
      }
      to.covariances = std::make_shared<const std::vector<head_covariances>>(std::move(learnt));
    }
    if constexpr (writer_type::wants_queries) {
      const std::vector<float> products =
          copied(from.view.metric.products, sizes_.n_kv_heads * key_dim * key_dim, stream);
      const std::vector<float> weights =
          copied(from.view.metric.weights, sizes_.n_kv_heads, stream);
      std::size_t n_rows = 0;
      metric_schedule again(sizes_.group_size());
      again.advance(from.schedule.n_tokens(),
                    [&](const metric_stretch& one) { n_rows += one.count * sizes_.group_size(); });
      for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
        const float* const matrix = products.data() + head * key_dim * key_dim;
        std::vector<float> lower;
        double squares = 0.0;
        for (std::size_t i = 0; i < key_dim; ++i) {
          lower.insert(lower.end(), matrix + i * key_dim, matrix + i * key_dim + i + 1);
          squares += static_cast<double>(lower.back());
        }
        restore(to.metrics[head], from.schedule, n_rows, static_cast<double>(weights[head]),
                squares, std::move(lower));
      }
    }
  }

  // A query metric in a given state.
  static void restore(query_metric& metric, const metric_schedule& schedule, std::size_t n_rows,
                      double weight, double squares, std::vector<float> lower) {
    const std::size_t counts[] = {schedule.rows_per_period(), schedule.rows_in_period(),
                                  schedule.period(), schedule.n_tokens(), n_rows};
    const double sums[] = {weight, squares};
    const std::size_t* count = counts;
    const double* sum = sums;
    query_metric::visit_state(metric, [&](auto& state) {
      using type = std::remove_cvref_t<decltype(state)>;
      if constexpr (std::is_same_v<type, std::size_t>) {
        state = *count++;
      } else if constexpr (std::is_same_v<type, double>) {
        state = *sum++;
      } else {
        state = std::move(lower);
      }
    });
  }

  void upload_learnt(const host_layer& from, device_layer& to, stream_type stream) {
    const std::size_t key_dim = sizes_.key_dim;
    if (from.covariances != nullptr) {
      const std::size_t matrix = key_dim * width();
      std::vector<float> products(learnt_view::n_products(writer_.shape()));
      std::vector<float> weights(sizes_.n_kv_heads * n_levels);
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const cluster_covariance& known = (*from.covariances)[i / n_levels][i % n_levels];
        if (!known.matrix.empty()) {
          weights[i] = static_cast<float>(known.weight);
          std::transform(known.matrix.begin(), known.matrix.end(), products.data() + i * matrix,
                         [&](float x) { return x * weights[i]; });
        }
      }
      writer_.memory().make_learnt(to, stream);
      copy_in(to.view.learnt.products, products, stream);
      copy_in(to.view.learnt.weights, weights, stream);
    }
    if constexpr (writer_type::wants_queries) {
      std::vector<float> products(sizes_.n_kv_heads * key_dim * key_dim);
      std::vector<float> weights(sizes_.n_kv_heads);
      for (std::size_t head = 0; head < sizes_.n_kv_heads; ++head) {
        std::vector<std::size_t> counts;
        std::vector<double> sums;
        const std::vector<float>* lower = nullptr;
        query_metric::visit_state(from.metrics[head], [&](const auto& state) {
          using type = std::remove_cvref_t<decltype(state)>;
          if constexpr (std::is_same_v<type, std::size_t>) {
            counts.push_back(state);
          } else if constexpr (std::is_same_v<type, double>) {
            sums.push_back(state);
          } else {
            lower = &state;
          }
        });
        weights[head] = static_cast<float>(sums[0]);
        float* const matrix_of = products.data() + head * key_dim * key_dim;
        for (std::size_t i = 0, at = 0; i < key_dim; ++i) {
          for (std::size_t j = 0; j <= i; ++j, ++at) {
            matrix_of[i * key_dim + j] = matrix_of[j * key_dim + i] = (*lower)[at];
          }
        }
        const std::size_t* count = counts.data();  // the same for all heads
        metric_schedule::visit_state(to.schedule, [&](std::size_t& state) { state = *count++; });
      }
      copy_in(to.view.metric.products, products, stream);
      copy_in(to.view.metric.weights, weights, stream);
    }
  }

  const geometry& sizes_;
  writer_type& writer_;
  reader_type& reader_;
  std::size_t sink_tokens_;
};

}  // namespace wavekv::device
