// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <wavekv/cuda/block.hpp>
#include <wavekv/index/detail/chunked_rows.cuh>
#include <wavekv/index/detail/point_set.cuh>

/// @file assign_points.cuh
/// @brief The nearest centroid of every point: a product of matrices on tensor cores whose result is never written.

namespace wavekv::device::detail {

/// Writes the bucket of every point, and the points' numbers, to be sorted by it. Ties go to the smaller cluster. As many
/// clusters as points or more: each point is its own; one cluster: it has all. Grid: (ceil(capacity / 128), n_jobs).
///
/// A block keeps its 128 points in shared memory and walks over all centroids, 128 at a time, in chunks of 32 columns that
/// arrive while the three before are multiplied. A warp multiplies 64 centroids with 32 points: 12 loads of 16 bytes for 32
/// tiles of m16n8k16, 48 cycles of shared memory for the 64 that an A100's tensor cores take. Of 92 instructions of the inner
/// loop 44 are these; centroids are the left operand because only they can be laid out for it when they are written, which
/// saves 100 moves between registers.
/// For a segment of 8192 tokens, 512 clusters and rows of 256 that is 2.1 GFLOP a KV head and iteration, and from global
/// memory 4 MiB of points once and, 64 times, 256 KiB of centroids that stay in L2.
/// Two blocks fit an H100: at most 128 registers a thread (118 as of nvcc 13), and 98 KiB of shared memory at a width of 256;
/// at 512 it is 162 KiB, the most that an A100 has.
struct assign_points {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  static constexpr unsigned block_points = 128;
  point_set points;
  cluster_set clusters;

  std::size_t shared_bytes() const {
    shared_arena arena;
    (void)shared_memory(arena, points.dim);
    return arena.used();
  }

  template <class Block>
  WAVEKV_DEVICE void operator()(Block& b) const {
    b.await_previous();
    b.release_next();
    const unsigned job = b.block_y();
    const unsigned first_point = b.block_x() * block_points;
    const unsigned n_points = points.n(job);
    if (first_point >= n_points || clusters.n_clusters == 1 || clusters.n_clusters >= n_points) {
      for (unsigned p = first_point + b.thread();
           p < first_point + block_points && p < points.capacity; p += b.n_threads()) {
        put(job, p, n_points, clusters.n_clusters == 1 ? 0 : p);
        if (points.misfits != nullptr && p < n_points) {
          points.misfits[points.place(job, p)] = 0.0F;
        }
      }
      return;
    }
    shared_arena arena(b.shared());
    const memory shared = shared_memory(arena, points.dim);
    find_best(b, job, first_point, n_points, shared);
    for (unsigned p = b.thread(); p < block_points && first_point + p < points.capacity;
         p += b.n_threads()) {
      const unsigned other = block_points + p;
      const bool right =
          shared.scores[other] > shared.scores[p] ||
          (shared.scores[other] == shared.scores[p] && shared.ids[other] < shared.ids[p]);
      const unsigned at = right ? other : p;
      put(job, first_point + p, n_points, shared.ids[at]);
      if (points.misfits != nullptr && first_point + p < n_points) {
        const std::size_t place = points.place(job, first_point + p);
        points.misfits[place] = points.bases[place] - points.slopes[place] * shared.scores[at];
      }
    }
  }

 private:
  static constexpr unsigned n_stages = 4;
  static constexpr unsigned cluster_tiles = 4;
  static constexpr unsigned point_tiles = 4;
  static constexpr unsigned warp_points = 8 * point_tiles;
  static constexpr unsigned warp_clusters = 16 * cluster_tiles;
  static constexpr unsigned warps_down = block_points / warp_points;
  static constexpr unsigned stage_words = cluster_set::tile * chunk_words;
  static constexpr unsigned piece_words = block_points * chunk_words;
  static_assert(warps_down * (cluster_set::tile / warp_clusters) * warp_size == n_threads);
  static_assert(cluster_set::tile == 2 * warp_clusters, "two halves of a tile have to agree");

  struct memory {
    words4* points;      // [dim / 32, block_points, 4]
    words4* centroids;   // [n_stages, tile, 4]
    float* scores;       // [2, block_points] best so far, by halves of the tiles
    std::uint32_t* ids;  // [2, block_points] whose it is
  };
  WAVEKV_HOST_DEVICE static memory shared_memory(shared_arena& arena, unsigned dim) {
    memory shared;
    shared.points = arena.take<words4>(std::size_t{dim} / chunk_dim * piece_words);
    shared.centroids = arena.take<words4>(n_stages * stage_words);
    shared.scores = arena.take<float>(2 * block_points);
    shared.ids = arena.take<std::uint32_t>(2 * block_points);
    return shared;
  }

  WAVEKV_DEVICE void put(unsigned job, unsigned point, unsigned n_points, unsigned cluster) const {
    const std::size_t at = std::size_t{job} * points.capacity + point;
    clusters.put_bucket(at, job * clusters.n_buckets() +
                                (point < n_points ? cluster : clusters.n_clusters));
    clusters.sorted[at] = point;
  }

  template <class Block>
  WAVEKV_DEVICE void load_points(Block& b, unsigned job, unsigned first_point, unsigned n_points,
                                 words4* to) const {
    const unsigned n_chunks = points.dim / chunk_dim;
    for (unsigned chunk = 0; chunk < n_chunks; ++chunk) {
      for (unsigned at = b.thread(); at < piece_words; at += n_threads) {
        const unsigned point = first_point + at / chunk_words;  // past the end: the last one again
        const words4* row = points.row(job, or_last(point, n_points));
        b.copy_async16(to + chunk * piece_words + at, row + chunk * chunk_words + at % chunk_words);
      }
    }
  }

  // The next 128 centroids' next 32 columns; a job's lie behind each other.
  template <class Block>
  WAVEKV_DEVICE void load_centroids(Block& b, const words4*& from, unsigned& left,
                                    words4* to) const {
    if (left != 0) {
      --left;
      WAVEKV_UNROLL
      for (unsigned part = 0; part < stage_words; part += n_threads) {
        b.copy_async16(to + part + b.thread(), from + part + b.thread());
      }
      from += stage_words;
    }
    b.commit_copies();
  }

  template <class Block>
  WAVEKV_DEVICE void find_best(Block& b, unsigned job, unsigned first_point, unsigned n_points,
                               const memory& shared) const {
    for (unsigned at = b.thread(); at < 2 * block_points; at += n_threads) {
      shared.scores[at] = -std::numeric_limits<float>::infinity();
      shared.ids[at] = 0;
    }
    const unsigned n_chunks = points.dim / chunk_dim;
    const unsigned n_tiles = clusters.n_padded() / cluster_set::tile;
    load_points(b, job, first_point, n_points, shared.points);
    const words4* from = clusters.tile_of(job, 0, n_chunks);
    unsigned left = n_tiles * n_chunks;
    for (unsigned s = 0; s + 1 < n_stages; ++s) {
      load_centroids(b, from, left, shared.centroids + s * stage_words);
    }
    const words4* const my_points =
        shared.points + b.warp() % warps_down * warp_points * chunk_words;
    const unsigned my_first = b.warp() / warps_down * warp_clusters;
    unsigned slot = 0;
    for (unsigned tile = 0; tile < n_tiles; ++tile) {
      const unsigned first_cluster = tile * cluster_set::tile + my_first;
      const bool is_needed = first_cluster < clusters.n_clusters;
      float sums[cluster_tiles][point_tiles][4];
      if (is_needed) {
        begin_with_biases(b, job, first_cluster, sums);
      }
      for (unsigned chunk = 0; chunk < n_chunks; ++chunk) {
        b.template wait_copies<n_stages - 2>();
        b.sync();  // everyone's copies have arrived, and nobody reads the slot that is filled next
        load_centroids(b, from, left,
                       shared.centroids + (slot + n_stages - 1) % n_stages * stage_words);
        if (is_needed) {
          multiply_chunk<cluster_tiles, point_tiles>(
              b, shared.centroids + slot * stage_words + my_first * chunk_words,
              my_points + chunk * piece_words, sums);
        }
        slot = (slot + 1) % n_stages;
      }
      if (is_needed) {
        take_better(b, first_cluster, sums, shared);
      }
    }
    b.template wait_copies<0>();
    b.sync();
  }

  template <class Block>
  WAVEKV_DEVICE void begin_with_biases(Block& b, unsigned job, unsigned first_cluster,
                                       float (&sums)[cluster_tiles][point_tiles][4]) const {
    const float* const biases =
        clusters.biases + std::size_t{job} * clusters.n_padded() + first_cluster + b.lane() / 4 * 2;
    WAVEKV_UNROLL
    for (unsigned c = 0; c < cluster_tiles; ++c) {
      const float upper = biases[16 * c];
      const float lower = biases[16 * c + 1];
      WAVEKV_UNROLL
      for (unsigned p = 0; p < point_tiles; ++p) {
        sums[c][p][0] = sums[c][p][1] = upper;
        sums[c][p][2] = sums[c][p][3] = lower;
      }
    }
  }

  struct scored {
    float score;
    std::uint32_t id;
  };
  WAVEKV_DEVICE static scored better(const scored& x, const scored& y) {
    return y.score > x.score || (y.score == x.score && y.id < x.id) ? y : x;
  }

  // The best of a tile against the best before, which lies in shared memory to leave registers to the sums; each point's
  // place is one warp's own. Of the eight points that a lane has sums of, it hands over half, then half of what is left,
  // and so on, until eight lanes have agreed on eight points, one each.
  template <class Block>
  WAVEKV_DEVICE static void take_better(Block& b, unsigned first_cluster,
                                        const float (&sums)[cluster_tiles][point_tiles][4],
                                        const memory& shared) {
    constexpr unsigned n_mine = 2 * point_tiles;
    scored best[n_mine];
    WAVEKV_UNROLL
    for (unsigned p = 0; p < n_mine; ++p) {
      best[p] = {-std::numeric_limits<float>::infinity(), 0};
      WAVEKV_UNROLL
      for (unsigned c = 0; c < 2 * cluster_tiles;
           ++c) {  // in order, so that the first of equals stays
        const float score = sums[c / 2][p / 2][c % 2 * 2 + p % 2];
        if (score > best[p].score) {
          best[p] = {score, c / 2 * 16 + c % 2};
        }
      }
      best[p].id += first_cluster + b.lane() / 4 * 2;
    }
    unsigned mine = 0;
    WAVEKV_UNROLL
    for (unsigned mask = warp_size / 2, n = n_mine / 2; n > 0; mask /= 2, n /= 2) {
      const bool takes_upper = (b.lane() & mask) != 0;
      mine += takes_upper ? n : 0;
      WAVEKV_UNROLL
      for (unsigned p = 0; p < n; ++p) {
        const scored kept = takes_upper ? best[p + n] : best[p];
        const scored sent = takes_upper ? best[p] : best[p + n];
        const scored other{b.shuffle_xor(sent.score, mask), b.shuffle_xor(sent.id, mask)};
        best[p] = better(kept, other);
      }
    }
    const unsigned at = b.warp() / warps_down * block_points + b.warp() % warps_down * warp_points +
                        mine / 2 * 8 + b.lane() % 4 * 2 + mine % 2;
    if (best[0].score > shared.scores[at]) {
      shared.scores[at] = best[0].score;
      shared.ids[at] = best[0].id;
    }
  }
};

}  // namespace wavekv::device::detail
