// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/point_set.cuh>
#include <wavekv/index/detail/seeds.hpp>
#include <wavekv/index/detail/select.cuh>
#include <wavekv/index/frontier.cuh>

/// @file move_centroids.cuh
/// @brief Where centroids are: at seeds, in the middle of their points, or, once empty, at a point that fits nowhere.

namespace wavekv::device::detail {

/// Centroids from the points of each cluster, or from its seed. Grid: (n_padded(), n_jobs).
template <wavekv::detail::lloyd_kind Kind, bool FromSeeds>
struct move_centroids {
  static constexpr unsigned n_threads = 128;
  static constexpr bool overlaps = true;
  point_set from;
  cluster_set to;

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)arena.take<float>(std::size_t{from.dim} * (n_threads / warp_size));
    (void)arena.take<float>(n_threads / warp_size);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned cluster = b.block_x();
    const unsigned job = b.block_y();
    const unsigned n_pieces = from.n_pieces();
    const std::size_t place = std::size_t{job} * to.n_padded() + cluster;
    words4* const centroid = to.centroids + place * n_pieces;
    const unsigned n_points = from.n(job);
    if (cluster >= to.n_clusters || (FromSeeds && cluster >= n_points)) {
      if (FromSeeds) {  // nothing to begin with
        for (unsigned piece = b.thread(); piece < n_pieces; piece += b.n_threads()) {
          centroid[piece] = words4{};
        }
        if (b.thread() == 0) {
          to.biases[place] = -std::numeric_limits<float>::infinity();
        }
      }
      return;
    }
    // Its points: a run of sorted ones, or a single one.
    unsigned begin = 0;
    unsigned n = 0;
    std::uint32_t single =
        FromSeeds ? middle_of_run(cluster, to.n_clusters, n_points) : cluster_set::nowhere;
    if (!FromSeeds) {
      begin = to.first_of(job)[cluster];
      n = to.first_of(job)[cluster + 1] - begin;
      if (n == 0) {
        single = to.newcomers[std::size_t{job} * to.n_clusters + cluster];
        if (single == cluster_set::nowhere) {
          return;  // it stays where it is
        }
      }
    }
    n = n == 0 ? 1 : n;
    shared_arena arena(b.shared());
    float* const sums = arena.take<float>(std::size_t{from.dim} * (n_threads / warp_size));
    float* const of_warps = arena.take<float>(n_threads / warp_size);
    const std::uint32_t* const sorted = to.sorted + std::size_t{job} * from.capacity;
    float mine[8] = {};
    add_rows_up<float, 2>(
        b, n, n_pieces, sums,
        [&](unsigned i, unsigned piece, float(&sum)[8]) {
          const unsigned point = single != cluster_set::nowhere ? single : sorted[begin + i];
          float x[8];
          unpack_eight(b, b.load16(from.row(job, point) + piece), x);
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 8; ++e) {
            sum[e] += x[e];
          }
        },
        [&](unsigned,
            const float(&sum)[8]) {  // rows have at most as many pieces as there are threads
          WAVEKV_UNROLL
          for (unsigned e = 0; e < 8; ++e) {
            mine[e] = sum[e];
          }
        });
    const float bias = Kind == wavekv::detail::lloyd_kind::spherical
                           ? to_direction(b, job, static_cast<float>(n), mine, of_warps)
                           : to_mean(b, static_cast<float>(n), mine, of_warps);
    if (b.thread() < n_pieces) {
      centroid[b.thread()] = pack_eight(b, mine);
    }
    if (b.thread() == 0) {
      to.biases[place] = bias;
    }
  }

 private:
  // The bias is that of the centroid as it is stored, so that points compare true distances to it.
  template <class Block>
  WAVEKV_DEVICE static float to_mean(Block& b, float n, float (&mine)[8], float* of_warps) {
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      mine[i] /= n;
    }
    unpack_eight(b, pack_eight(b, mine), mine);
    return -0.5F * block_sum(b, dot_eight(mine, mine), of_warps);
  }

  template <class Block>
  WAVEKV_DEVICE float to_direction(Block& b, unsigned job, float n, float (&mine)[8],
                                   float* of_warps) const {
    float mean[8];
    from.load_mean(job, b.thread(), mean);
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      mine[i] += n * mean[i];
    }
    const float length = std::sqrt(block_sum(b, dot_eight(mine, mine), of_warps));
    const float mean_length = std::sqrt(block_sum(b, dot_eight(mean, mean), of_warps));
    const float scale = length > 0.0F ? 1.0F / length : 0.0F;
    const float mean_scale = mean_length > 0.0F ? 1.0F / mean_length : 0.0F;
    WAVEKV_UNROLL
    for (unsigned i = 0; i < 8; ++i) {
      mine[i] = mine[i] * scale - mean[i] * mean_scale;
    }
    return block_sum(b, dot_eight(mine, mean), of_warps);
  }
};

/// Gives each empty cluster one of the worst-fitting points to begin anew at: as many as there are empty ones, in the order of
/// their numbers. Points that fit to rounding stay: copies of one key are one cluster. Grid: (1, n_jobs).
template <wavekv::detail::lloyd_kind Kind>
struct fill_vacancies {
  static constexpr unsigned n_threads = 512;
  static constexpr bool overlaps = true;
  point_set points;
  cluster_set clusters;

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)plan_memory::take(arena, n_threads / warp_size, 1);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    shared_arena arena(b.shared());
    const plan_memory memory = plan_memory::take(arena, n_threads / warp_size, 1);
    const std::uint32_t* const first = clusters.first_of(job);
    std::uint32_t* const vacant = clusters.vacant + std::size_t{job} * clusters.n_clusters;
    std::uint32_t* const newcomers = clusters.newcomers + std::size_t{job} * clusters.n_clusters;
    const unsigned n_vacant = for_each_in_order(
        b, clusters.n_clusters, memory.of_warps,
        [&](unsigned cluster) { return first[cluster] == first[cluster + 1]; },
        [&](unsigned place, unsigned cluster) {
          vacant[place] = cluster;
          newcomers[cluster] = cluster_set::nowhere;
        });
    if (n_vacant == 0) {
      return;
    }
    const unsigned n_points = points.n(job);
    const float* const misfits = points.misfits + points.place(job, 0);
    const float* const bases = points.bases + points.place(job, 0);
    constexpr float rounding = 1e-5F;
    constexpr bool is_spherical = Kind == wavekv::detail::lloyd_kind::spherical;
    const auto misfit = [&](unsigned /*row*/, unsigned i) { return misfits[i]; };
    const auto can_move = [&](unsigned i) {
      return misfits[i] > (is_spherical ? rounding : rounding * bases[i]) ? 1U : 0U;
    };
    select_largest(b, 1, n_points, misfit, can_move, n_vacant, memory);
    const selection chosen = selected(memory, 0);
    for_each_in_order(
        b, n_points, memory.of_warps,
        [&](unsigned i) { return can_move(i) != 0 && chosen.holds(misfits[i], i); },
        [&](unsigned place, unsigned i) { newcomers[vacant[place]] = i; });
  }

 private:
  // Calls visit(place, i) for the numbers i below n that are wanted. Returns how many; what was written is then seen.
  template <class Block, class Wanted, class Visit>
  WAVEKV_DEVICE static unsigned for_each_in_order(Block& b, unsigned n, unsigned* of_warps,
                                                  const Wanted& is_wanted, const Visit& visit) {
    unsigned done = 0;
    for (unsigned begin = 0; begin < n; begin += n_threads) {
      const unsigned i = begin + b.thread();
      const bool wanted = i < n && is_wanted(i);
      unsigned n_wanted = 0;
      const unsigned place = done + block_scan(b, wanted ? 1U : 0U, of_warps, n_wanted);
      if (wanted) {
        visit(place, i);
      }
      done += n_wanted;
    }
    b.sync();
    return done;
  }
};

}  // namespace wavekv::device::detail
