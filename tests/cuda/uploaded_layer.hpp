// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <wavekv/cache/layer_state.hpp>
#include <wavekv/cache/layer_view.cuh>

/// @file uploaded_layer.hpp
/// @brief A layer that the CPU has sealed, in device memory: so that searches are tested apart from sealing.

namespace wavekv_test {

/// @brief Device memory that holds one layer.
template <class T, class ClusterCount, class Runtime>
class uploaded_layer {
 public:
  /// @param state  of a resident buffer
  template <class Layer>
  uploaded_layer(Runtime runtime, const wavekv::device::model_shape& shape, const Layer& state)
      : runtime_(runtime), shape_(shape) {
    using namespace wavekv::device;
    const std::size_t width = shape.width();
    layer_view<T> view;
    view.length = static_cast<std::uint32_t>(state.length());
    // The device keeps sink tokens apart from the first; the CPU, from the first seal on.
    view.sink_capacity = static_cast<std::uint32_t>(state.sink.size());
    view.tail_begin = static_cast<std::uint32_t>(state.length() - state.tail.size());
    view.n_segments = static_cast<std::uint32_t>(state.segments.size());
    view.sink = upload(interleaved(state.sink, 0, state.sink.size()));
    view.tail.capacity =
        static_cast<std::uint32_t>((state.tail.size() + 2 * run_rows) / run_rows * run_rows);
    std::vector<T> ring(shape.n_kv_heads * view.tail.capacity * width);
    const std::vector<T> tail = interleaved(state.tail, 0, state.tail.size());
    for (std::size_t head = 0; head < shape.n_kv_heads; ++head) {
      for (std::size_t i = 0; i < state.tail.size(); ++i) {
        const std::size_t slot = (view.tail_begin + i) % view.tail.capacity;
        std::copy_n(tail.data() + (head * state.tail.size() + i) * width, width,
                    ring.data() + (head * view.tail.capacity + slot) * width);
      }
    }
    view.tail.rows = upload(ring);
    std::vector<index_facts> facts(shape.n_kv_heads);
    std::vector<std::vector<node_run<T>>> runs(shape.n_kv_heads);
    std::vector<segment_view<T>> segments;
    for (const auto& segment : state.segments) {
      segments.push_back(upload_segment(*segment));
      for (unsigned head = 0; head < shape.n_kv_heads; ++head) {
        enter(*segment, segments.back(), static_cast<unsigned>(segments.size() - 1), head,
              facts[head], runs[head]);
      }
    }
    std::size_t most = 1;
    for (const auto& of_head : runs) most = std::max(most, of_head.size());
    view.top_capacity = static_cast<std::uint32_t>(most);
    std::vector<node_run<T>> all_runs(shape.n_kv_heads * most);
    for (std::size_t head = 0; head < runs.size(); ++head) {
      std::ranges::copy(runs[head], all_runs.data() + head * most);
    }
    view.segments = upload(segments);
    view.top_runs = upload(all_runs);
    view.facts = upload(facts);
    if (state.covariances != nullptr) {
      std::vector<float> products(learnt_view::n_products(shape));
      std::vector<float> weights(shape.n_kv_heads * shape.n_levels);
      for (std::size_t head = 0; head < shape.n_kv_heads; ++head) {
        for (std::size_t level = 0; level < shape.n_levels; ++level) {
          const auto& known = (*state.covariances)[head][level];
          const std::size_t at = head * shape.n_levels + level;
          weights[at] = known.matrix.empty() ? 0.0F : static_cast<float>(known.weight);
          for (std::size_t i = 0; i < known.matrix.size(); ++i) {
            products[at * shape.key_dim * width + i] = known.matrix[i] * weights[at];
          }
        }
      }
      view.learnt.products = upload(products);
      view.learnt.weights = upload(weights);
    }
    view_ = upload(std::vector<layer_view<T>>{view});
    n_top_runs_ = static_cast<std::uint32_t>(most);
  }

  uploaded_layer(const uploaded_layer&) = delete;
  uploaded_layer& operator=(const uploaded_layer&) = delete;
  ~uploaded_layer() {
    for (const auto& [memory, bytes] : memory_) runtime_.deallocate(memory, bytes, {});
  }

  [[nodiscard]] const wavekv::device::layer_view<T>* view() const { return view_; }
  [[nodiscard]] std::uint32_t n_top_runs() const { return n_top_runs_; }

 private:
  template <class Element>
  Element* upload(const std::vector<Element>& from) {
    const std::size_t bytes = std::max<std::size_t>(from.size(), 1) * sizeof(Element);
    void* const to = runtime_.allocate(bytes, {});
    memory_.emplace_back(to, bytes);
    runtime_.copy_in(to, from.data(), from.size() * sizeof(Element), {});
    return static_cast<Element*>(to);
  }

  template <class Rows>
  std::vector<T> interleaved(const Rows& rows, std::size_t first, std::size_t n) const {
    const std::size_t width = shape_.width();
    std::vector<T> to(shape_.n_kv_heads * n * width);
    for (std::size_t head = 0; head < shape_.n_kv_heads; ++head) {
      for (std::size_t i = 0; i < n; ++i) {
        T* const row = to.data() + (head * n + i) * width;
        std::copy_n(rows.keys(head) + (first + i) * shape_.key_dim, shape_.key_dim, row);
        std::copy_n(rows.values(head) + (first + i) * shape_.value_dim, shape_.value_dim,
                    row + shape_.key_dim);
      }
    }
    return to;
  }

  // Rows of a family or block: keys behind each other, then values; to rows of both.
  void interleave(const T* from, std::size_t n, T* to) const {
    for (std::size_t i = 0; i < n; ++i) {
      std::copy_n(from + i * shape_.key_dim, shape_.key_dim, to + i * shape_.width());
      std::copy_n(from + n * shape_.key_dim + i * shape_.value_dim, shape_.value_dim,
                  to + i * shape_.width() + shape_.key_dim);
    }
  }

  template <class Segment>
  wavekv::device::segment_view<T> upload_segment(const Segment& segment) {
    using namespace wavekv::device;
    const std::size_t n = segment.n_tokens();
    const std::size_t width = shape_.width();
    segment_view<T> view;
    view.first_token = static_cast<std::uint32_t>(segment.first_token());
    view.n_tokens = static_cast<std::uint32_t>(n);
    std::vector<T> rows(shape_.n_kv_heads * n * width);
    std::vector<std::uint16_t> order;
    std::vector<float> spread;
    for (unsigned head = 0; head < shape_.n_kv_heads; ++head) {
      const auto& index = segment.head(head);
      order.insert(order.end(), index.order, index.order + n);
      spread.push_back(index.value_spread);
      for (std::uint32_t c = 0; c < index.levels[0].n_nodes; ++c) {
        const std::uint32_t first = index.levels[0].first_child[c];
        const std::uint32_t count = index.levels[0].first_child[c + 1] - first;
        interleave(segment.rows().data() + (head * n + first) * width, count,
                   rows.data() + (head * n + first) * width);
      }
    }
    view.rows = upload(rows);
    view.order = upload(order);
    view.value_spread = upload(spread);
    for (unsigned l = 0; l < shape_.n_levels; ++l) {
      level_view<T>& level = view.levels[l];
      level.capacity = most_nodes<ClusterCount>(n, l);
      std::vector<T> summaries(shape_.n_kv_heads * level.capacity * width);
      std::vector<float> sizes(shape_.n_kv_heads * level.capacity);
      std::vector<float> dispersions(sizes.size());
      std::vector<std::uint32_t> links(shape_.n_kv_heads * (level.capacity + 1));
      std::vector<std::uint32_t> counts;
      for (unsigned head = 0; head < shape_.n_kv_heads; ++head) {
        const auto& of = segment.head(head).levels[l];
        counts.push_back(of.n_nodes);
        std::copy_n(of.size, of.n_nodes, sizes.data() + head * level.capacity);
        std::copy_n(of.dispersion, of.n_nodes, dispersions.data() + head * level.capacity);
        std::copy_n(of.first_child, of.n_nodes + 1, links.data() + head * (level.capacity + 1));
        T* const to = summaries.data() + head * level.capacity * width;
        if (l + 1 < shape_.n_levels) {
          const auto& above = segment.head(head).levels[l + 1];
          for (std::uint32_t p = 0; p < above.n_nodes; ++p) {
            const std::uint32_t first = above.first_child[p];
            interleave(of.rows + first * width, above.first_child[p + 1] - first,
                       to + first * width);
          }
        } else {
          interleave(of.rows, of.n_nodes, to);
        }
      }
      level.rows = upload(summaries);
      level.sizes = upload(sizes);
      level.dispersions = upload(dispersions);
      level.first_child = upload(links);
      level.n_nodes = upload(counts);
    }
    return view;
  }

  template <class Segment>
  void enter(const Segment& segment, const wavekv::device::segment_view<T>& view, unsigned place,
             unsigned head, wavekv::device::index_facts& facts,
             std::vector<wavekv::device::node_run<T>>& runs) const {
    using namespace wavekv::device;
    const unsigned top = shape_.n_levels - 1;
    const auto& index = segment.head(head);
    facts.n_clusters += index.levels[0].n_nodes;
    facts.n_top_nodes += index.levels[top].n_nodes;
    facts.n_sealed += view.n_tokens;
    facts.squared_spread +=
        index.value_spread * index.value_spread * static_cast<float>(view.n_tokens);
    const level_view<T>& level = view.levels[top];
    for (std::uint32_t node = 0; node < index.levels[top].n_nodes; node += run_rows) {
      const std::size_t at = head * level.capacity + node;
      node_run<T> run;
      run.rows = level.rows + at * shape_.width();
      run.sizes = level.sizes + at;
      run.dispersions = level.dispersions + at;
      run.n = std::min<std::uint32_t>(run_rows, index.levels[top].n_nodes - node);
      run.segment = place;
      run.first_node = node;
      runs.push_back(run);
    }
    facts.n_top_runs = static_cast<std::uint32_t>(runs.size());
  }

  Runtime runtime_;
  wavekv::device::model_shape shape_;
  wavekv::device::layer_view<T>* view_ = nullptr;
  std::uint32_t n_top_runs_ = 0;
  std::vector<std::pair<void*, std::size_t>> memory_;
};

}  // namespace wavekv_test
