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

/// Seeds at even distances: the first n_even clusters begin at those, the others nowhere yet.
/// Grid: (ceil(n_clusters / 128), n_jobs).
struct choose_even_seeds {
  static constexpr unsigned n_threads = 128;
  static constexpr bool overlaps = true;
  point_set points;
  cluster_set clusters;
  unsigned n_even = 1;

  std::size_t shared_bytes() const { return 0; }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned cluster = b.block_x() * n_threads + b.thread();
    if (cluster < clusters.n_clusters) {
      clusters.newcomers[clusters.place(job, cluster)] =
          cluster < n_even ? middle_of_run(cluster, n_even, points.n(job)) : cluster_set::nowhere;
    }
  }
};

/// Seeds far from the even ones, to which all points have been assigned: drawn at equal steps of the summed squares of
/// misfits, as choose_far_seeds does of some of the points. Clusters that no draw is left for are empty, and are given the
/// worst-fitting points in the next iteration. Grid: (1, n_jobs).
struct draw_far_seeds {
  static constexpr unsigned n_threads = 512;
  static constexpr bool overlaps = true;
  point_set points;
  cluster_set clusters;
  unsigned n_even = 1;

  std::size_t shared_bytes() const { return 2 * n_threads / warp_size * sizeof(unsigned); }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned n_points = points.n(job);
    const float* const misfits = points.misfits + points.place(job, 0);
    auto* const of_warps = reinterpret_cast<unsigned*>(b.shared());
    std::uint32_t* const newcomers = clusters.newcomers + clusters.place(job, 0);
    float most = 0.0F;
    for (unsigned i = b.thread(); i < n_points; i += n_threads) {
      most = misfits[i] > most ? misfits[i] : most;
    }
    most = block_max(b, most, reinterpret_cast<float*>(of_warps + n_threads / warp_size));
    if (!(most > 1e-5F)) {
      return;  // all are copies of the even seeds
    }
    // Whole numbers, so that their sum does not depend on its order: at most 65,536 of fifteen bits.
    const auto weight = [&](unsigned i) {
      const float part = i < n_points && misfits[i] > 0.0F ? misfits[i] / most : 0.0F;
      return static_cast<unsigned>(part * part * 32767.0F);
    };
    unsigned mine = 0;
    for (unsigned i = b.thread(); i < n_points; i += n_threads) {
      mine += weight(i);
    }
    const std::uint64_t all = block_count(b, mine, of_warps);
    const std::uint64_t n_drawn = clusters.n_clusters - n_even;
    // Steps that lie below a place in the sum: (step + ½) · all / n_drawn < x
    const auto n_steps = [&](std::uint64_t x) { return (2 * x * n_drawn + all - 1) / (2 * all); };
    unsigned sum = 0;
    unsigned drawn = n_even;
    for (unsigned begin = 0; begin < n_points; begin += n_threads) {
      const unsigned i = begin + b.thread();
      unsigned total = 0;
      const unsigned x = weight(i);
      const unsigned before = sum + block_scan(b, x, of_warps, total);
      const bool is_drawn = n_steps(before + x) > n_steps(before);  // a heavy point once
      sum += total;
      const unsigned place = drawn + block_scan(b, is_drawn ? 1U : 0U, of_warps, total);
      if (is_drawn) {
        newcomers[place] = i;
      }
      drawn += total;
    }
  }
};

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
    const unsigned n_points = from.n(job);
    // A seed, or where an empty cluster begins anew.
    std::uint32_t single = FromSeeds && cluster < to.n_clusters && n_points > to.n_clusters
                               ? to.newcomers[to.place(job, cluster)]
                               : cluster_set::nowhere;
    if (cluster >= to.n_clusters || (FromSeeds && single == cluster_set::nowhere)) {
      if (FromSeeds) {  // nothing to begin with
        put(job, cluster, b.thread(), words4{});
        if (b.thread() == 0) {
          to.biases[place] = -std::numeric_limits<float>::infinity();
        }
      }
      return;
    }
    unsigned begin = 0;
    unsigned n = 0;
    if (!FromSeeds) {
      begin = to.first_of(job)[cluster];
      n = to.first_of(job)[cluster + 1] - begin;
      if (n == 0) {
        single = to.newcomers[to.place(job, cluster)];
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
    put(job, cluster, b.thread(), pack_eight(b, mine));
    if (b.thread() == 0) {
      to.biases[place] = bias;
    }
  }

 private:
  WAVEKV_DEVICE void put(unsigned job, unsigned cluster, unsigned piece,
                         const words4& packed) const {
    const unsigned n_chunks = from.dim / chunk_dim;
    if (piece < n_chunks * chunk_words) {
      words4* const chunk = to.tile_of(job, cluster, n_chunks) +
                            std::size_t{piece / chunk_words} * cluster_set::tile * chunk_words;
      put_left(chunk, left_place(cluster % cluster_set::tile, piece % chunk_words), packed);
    }
  }

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
    std::uint32_t* const vacant = clusters.vacant + clusters.place(job, 0);
    std::uint32_t* const newcomers = clusters.newcomers + clusters.place(job, 0);
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
