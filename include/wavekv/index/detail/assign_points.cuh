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
/// arrive while the four before are multiplied. A warp multiplies 32 points with 64 centroids: 12 loads of 16 bytes for 32
/// tiles of m16n8k16, so that shared memory (48 of its cycles) keeps up with the tensor cores (4 · 32 / 4 to 8 · 32 / 4).
/// For a segment of 8192 tokens, 512 clusters and rows of 256 that is 2.1 GFLOP a KV head and iteration, and from global
/// memory 4 MiB of points once and, 64 times, 256 KiB of centroids that stay in L2.
/// Shared memory: 64 KiB + 34 KiB at a width of 256, two blocks on an H100; 162 KiB at 512.
struct assign_points {
  static constexpr unsigned n_threads = 256;
  static constexpr bool overlaps = true;
  static constexpr unsigned min_blocks =
      2;  ///< on a multiprocessor: at most 128 registers a thread
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
  static constexpr unsigned row_tiles = 2;
  static constexpr unsigned column_tiles = 8;
  static constexpr unsigned warp_points = 16 * row_tiles;
  static constexpr unsigned warp_clusters = 8 * column_tiles;
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
        const words4* row = points.row(job, point < n_points ? point : n_points - 1);
        b.copy_async16(to + chunk * piece_words + at, row + chunk * chunk_words + at % chunk_words);
      }
    }
  }

  // Where a thread's share of the centroids comes from: chunk by chunk, tile by tile.
  struct centroid_source {
    const words4* from;
    unsigned chunks_left;  // of the tile
    unsigned left;         // of all tiles
  };

  template <class Block>
  WAVEKV_DEVICE void load_centroids(Block& b, centroid_source& source, words4* to) const {
    if (source.left != 0) {
      const std::size_t n_pieces = points.n_pieces();
      WAVEKV_UNROLL
      for (unsigned part = 0; part < stage_words / n_threads; ++part) {
        b.copy_async16(to + b.thread() + part * n_threads,
                       source.from + part * (n_threads / chunk_words) * n_pieces);
      }
      --source.left;
      source.from += chunk_words;
      if (--source.chunks_left == 0) {
        source.from += (cluster_set::tile - 1) * n_pieces;
        source.chunks_left = points.dim / chunk_dim;
      }
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
    centroid_source source{
        clusters.centroids + std::size_t{job} * clusters.n_padded() * points.n_pieces() +
            std::size_t{b.thread() / chunk_words} * points.n_pieces() + b.thread() % chunk_words,
        n_chunks, n_tiles * n_chunks};
    for (unsigned s = 0; s + 1 < n_stages; ++s) {
      load_centroids(b, source, shared.centroids + s * stage_words);
    }
    const words4* const my_points =
        shared.points + b.warp() % warps_down * warp_points * chunk_words;
    const unsigned my_first = b.warp() / warps_down * warp_clusters;
    unsigned slot = 0;
    for (unsigned tile = 0; tile < n_tiles; ++tile) {
      const unsigned first_cluster = tile * cluster_set::tile + my_first;
      const bool is_needed = first_cluster < clusters.n_clusters;
      float sums[row_tiles][column_tiles][4];
      if (is_needed) {
        begin_with_biases(b, job, first_cluster, sums);
      }
      for (unsigned chunk = 0; chunk < n_chunks; ++chunk) {
        b.template wait_copies<n_stages - 2>();
        b.sync();  // everyone's copies have arrived, and nobody reads the slot that is filled next
        load_centroids(b, source,
                       shared.centroids + (slot + n_stages - 1) % n_stages * stage_words);
        if (is_needed) {
          multiply_chunk<row_tiles, column_tiles>(
              b, my_points + chunk * piece_words,
              shared.centroids + slot * stage_words + my_first * chunk_words, sums);
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
                                       float (&sums)[row_tiles][column_tiles][4]) const {
    const float* const biases =
        clusters.biases + std::size_t{job} * clusters.n_padded() + first_cluster + b.lane() % 4 * 2;
    WAVEKV_UNROLL
    for (unsigned c = 0; c < column_tiles; ++c) {
      const float left = biases[8 * c];
      const float right = biases[8 * c + 1];
      WAVEKV_UNROLL
      for (unsigned r = 0; r < row_tiles; ++r) {
        sums[r][c][0] = sums[r][c][2] = left;
        sums[r][c][1] = sums[r][c][3] = right;
      }
    }
  }

  // The best of a tile, which the four lanes of a row agree on, against the best before. It lies in shared memory to leave
  // registers to the sums; each row's place is one warp's own.
  template <class Block>
  WAVEKV_DEVICE static void take_better(Block& b, unsigned first_cluster,
                                        const float (&sums)[row_tiles][column_tiles][4],
                                        const memory& shared) {
    WAVEKV_UNROLL
    for (unsigned r = 0; r < row_tiles; ++r) {
      WAVEKV_UNROLL
      for (unsigned h = 0; h < 2; ++h) {
        float score = -std::numeric_limits<float>::infinity();
        unsigned place = 0;
        WAVEKV_UNROLL
        for (unsigned c = 0; c < column_tiles;
             ++c) {  // in order, so that the first of equals stays
          WAVEKV_UNROLL
          for (unsigned part = 0; part < 2; ++part) {
            if (sums[r][c][2 * h + part] > score) {
              score = sums[r][c][2 * h + part];
              place = 8 * c + part;
            }
          }
        }
        std::uint32_t id = first_cluster + b.lane() % 4 * 2 + place;
        WAVEKV_UNROLL
        for (unsigned mask = 1; mask < 4; mask *= 2) {
          const float other = b.shuffle_xor(score, mask);
          const std::uint32_t other_id = b.shuffle_xor(id, mask);
          if (other > score || (other == score && other_id < id)) {
            score = other;
            id = other_id;
          }
        }
        if (b.lane() % 4 == 0) {
          const unsigned at = b.warp() / warps_down * block_points +
                              b.warp() % warps_down * warp_points + 16 * r + 8 * h + b.lane() / 4;
          if (score > shared.scores[at]) {
            shared.scores[at] = score;
            shared.ids[at] = id;
          }
        }
      }
    }
  }
};

}  // namespace wavekv::device::detail
