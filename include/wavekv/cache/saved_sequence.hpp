// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/core/aligned_storage.hpp>
#include <wavekv/core/checksum.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/cpu/executor.hpp>
#include <wavekv/file/fingerprint.hpp>
#include <wavekv/file/layer_part.hpp>
#include <wavekv/file/segment_part.hpp>
#include <wavekv/file/sequence_file.hpp>

/// @file saved_sequence.hpp
/// @brief The layers of a sequence to a file and back. Nothing is clustered again.

namespace wavekv {

/// @brief Saves and loads the layers of one sequence.
/// @tparam T       storage scalar
/// @tparam Buffer  a wave_buffer
/// @tparam Layer   a layer_state
template <scalar T, class Buffer, class Layer>
class saved_sequence {
 public:
  using reader_type = block_reader<T, Buffer>;
  using segment_type =
      typename std::remove_cvref_t<decltype(Layer::segments)>::value_type::element_type;

  /// @brief Writes a whole file, which replaces an older one once it is whole.
  /// Complexity: O(bytes). Allocates: some MB.  @throw as write
  static void save(const std::filesystem::path& path, const std::string& fingerprint,
                   std::span<const std::byte> engine, std::span<const Layer> layers,
                   const geometry& sizes, reader_type& reader) {
    sequence_file_writer file(path);
    file.write({part_kind::fingerprint}, std::as_bytes(std::span(fingerprint)));
    file.write({part_kind::engine}, engine);
    write(file, layers, sizes, reader);
    file.commit();
  }

  /// @brief Reads a whole file, once it is found to be of this model and cache. Parameters as of read.
  /// @return what the caller had saved with it
  /// @throw mismatch_error; as read
  template <executor Executor>
  [[nodiscard]] static std::vector<std::byte> load(const std::filesystem::path& path,
                                                   const std::string& fingerprint,
                                                   std::span<Layer> layers, const geometry& sizes,
                                                   std::size_t n_levels, std::size_t sink_tokens,
                                                   std::size_t max_tokens, reader_type& reader,
                                                   Executor& executor) {
    const sequence_file_reader file(path);
    const aligned_storage<std::byte> seen = file.read({part_kind::fingerprint});
    compare_fingerprints({reinterpret_cast<const char*>(seen.data()), seen.size()}, fingerprint,
                         path.string());
    const aligned_storage<std::byte> callers = file.read({part_kind::engine});
    std::vector<std::byte> engine(callers.data(), callers.data() + callers.size());
    read(file, layers, sizes, n_levels, sink_tokens, max_tokens, reader, executor);
    return engine;
  }

  /// @brief Writes all layers.
  /// Complexity: O(bytes). Allocates: some MB.  @throw io_error; format_error when rows in the slow tier have changed
  static void write(sequence_file_writer& to, std::span<const Layer> layers, const geometry& sizes,
                    reader_type& reader) {
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const auto layer = static_cast<std::uint32_t>(l);
      byte_writer part;
      put_layer(part, layers[l], sizes);
      to.write({part_kind::layer, layer, 0}, part.bytes());
      for (std::size_t s = 0; s < layers[l].segments.size(); ++s) {
        write_segment(to, *layers[l].segments[s], layer, static_cast<std::uint32_t>(s), sizes,
                      reader);
      }
    }
  }

  /// @brief Reads all layers into those of a new sequence. What a store can adopt stays in the file; anything else is read
  /// and compared with its checksums.
  /// Complexity: O(bytes read).  @throw io_error, format_error, std::bad_alloc
  template <executor Executor>
  static void read(const sequence_file_reader& from, std::span<Layer> layers, const geometry& sizes,
                   std::size_t n_levels, std::size_t sink_tokens, std::size_t max_tokens,
                   reader_type& reader, Executor& executor) {
    struct place {
      std::uint32_t layer;
      std::uint32_t segment;
    };
    std::vector<place> places;
    for (std::uint32_t layer = 0; layer < layers.size(); ++layer) {
      const part_id id{part_kind::layer, layer, 0};
      const aligned_storage<std::byte> part = from.read(id);
      byte_reader bytes = reader_of(from, part, id);
      const std::size_t n = get_layer(bytes, layers[layer], sizes, sink_tokens, max_tokens);
      if (n != from.count(part_kind::index, layer)) {
        bytes.fail(detail::message("names ", n, " segments; allowed: ",
                                   from.count(part_kind::index, layer), ", whose parts there are"));
      }
      layers[layer].segments.resize(n);
      for (std::uint32_t segment = 0; segment < n; ++segment) {
        places.push_back({layer, segment});
      }
    }
    const file_rows rows(reader, from);
    executor.parallel_for(places.size(), [&](std::size_t i, std::size_t /*worker*/) {
      const auto [layer, segment] = places[i];
      layers[layer].segments[segment] = read_segment(from, layer, segment, sizes, n_levels, rows);
    });
    for (std::uint32_t layer = 0; layer < layers.size(); ++layer) {
      check_order(from, layers[layer], layer, max_tokens);
    }
  }

 private:
  static constexpr std::size_t chunk_bytes = std::size_t{4} << 20U;
  static constexpr bool adopts = requires(typename reader_type::tiers_type& tiers,
                                          const std::filesystem::path& path) { tiers.open(path); };

  static byte_reader reader_of(const sequence_file_reader& from,
                               const aligned_storage<std::byte>& part, const part_id& id) {
    return {std::span<const std::byte>(part.data(), part.size()),
            detail::message(from.path().string(), ": ", id.name())};
  }

  static std::size_t rows_bytes(const geometry& sizes, std::size_t n_tokens) noexcept {
    return n_tokens * sizes.n_kv_heads * (sizes.key_dim + sizes.value_dim) * sizeof(T);
  }

  static void write_segment(sequence_file_writer& to, const segment_type& segment,
                            std::uint32_t layer, std::uint32_t number, const geometry& sizes,
                            reader_type& reader) {
    const std::size_t width = sizes.key_dim + sizes.value_dim;
    const std::vector<block> blocks = segment.list_blocks();
    std::vector<std::uint32_t> checksums(blocks.size());
    std::vector<T> chunk;
    to.begin_rows({part_kind::rows, layer, number});
    for (std::size_t first = 0; first < blocks.size();) {
      std::size_t end = first;
      std::size_t n = 0;
      do {
        n += blocks[end++].n_tokens * width;
      } while (end < blocks.size() && n * sizeof(T) < chunk_bytes);
      chunk.resize(n);
      reader.tiers().copy(segment.rows(), blocks[first].offset, std::span<T>(chunk));
      for (std::size_t i = first; i < end; ++i) {
        const T* rows = chunk.data() + (blocks[i].offset - blocks[first].offset);
        if constexpr (!reader_type::always_fast) {
          reader.tiers().check(segment.rows(), blocks[i], rows);
        }
        checksums[i] = block_checksum(std::as_bytes(std::span(rows, blocks[i].n_tokens * width)));
      }
      to.append(std::as_bytes(std::span<const T>(chunk)));
      first = end;
    }
    byte_writer part;
    put_segment(part, segment.index_image(), checksums);
    to.write({part_kind::index, layer, number}, part.bytes());
  }

  // Gives the rows of a segment: as a part of the file where the slow tier can be that, read from it otherwise.
  class file_rows {
   public:
    file_rows(reader_type& reader, const sequence_file_reader& from)
        : reader_(reader), from_(from), opened_(open(reader, from)) {}

    typename reader_type::handle take(const part_id& id, std::span<const block> blocks,
                                      std::vector<std::uint32_t> checksums,
                                      std::size_t width) const {
      const part_place& place = from_.find(id);
      if constexpr (adopts) {
        return reader_.tiers().adopt(opened_, place.offset, static_cast<std::size_t>(place.n_bytes),
                                     std::move(checksums));
      } else {
        aligned_storage<T> rows(static_cast<std::size_t>(place.n_bytes) / sizeof(T));
        from_.read_rows(id, 0, std::as_writable_bytes(std::span(rows.data(), rows.size())));
        for (const block& one : blocks) {
          const std::uint32_t seen = block_checksum(
              std::as_bytes(std::span<const T>(rows.data() + one.offset, one.n_tokens * width)));
          if (seen != checksums[one.index]) {
            from_.fail(id.name(), detail::message("block ", one.index, " has checksum ", seen,
                                                  "; allowed: ", checksums[one.index],
                                                  ", that of what was written"));
          }
        }
        return reader_.keep(std::move(rows), blocks);
      }
    }

   private:
    static auto open(reader_type& reader, const sequence_file_reader& from) {
      if constexpr (adopts) {
        return reader.tiers().open(from.path());
      } else {
        return 0;
      }
    }

    reader_type& reader_;
    const sequence_file_reader& from_;
    decltype(open(std::declval<reader_type&>(),
                  std::declval<const sequence_file_reader&>())) opened_;
  };

  static std::shared_ptr<const segment_type> read_segment(const sequence_file_reader& from,
                                                          std::uint32_t layer, std::uint32_t number,
                                                          const geometry& sizes,
                                                          std::size_t n_levels,
                                                          const file_rows& rows) {
    const part_id id{part_kind::index, layer, number};
    const part_id rows_id{part_kind::rows, layer, number};
    const aligned_storage<std::byte> part = from.read(id);
    byte_reader bytes = reader_of(from, part, id);
    const std::size_t width = sizes.key_dim + sizes.value_dim;
    std::vector<std::uint32_t> checksums;
    auto image = get_segment<typename segment_type::image>(bytes, sizes.n_kv_heads, n_levels, width,
                                                           checksums);
    if (from.find(rows_id).n_bytes != rows_bytes(sizes, image.n_tokens)) {
      from.fail(rows_id.name(),
                detail::message("has ", from.find(rows_id).n_bytes,
                                " bytes; allowed: ", rows_bytes(sizes, image.n_tokens)));
    }
    return std::make_shared<const segment_type>(
        sizes.key_dim, sizes.value_dim, std::move(image), [&](std::span<const block> blocks) {
          return rows.take(rows_id, blocks, std::move(checksums), width);
        });
  }

  static void check_order(const sequence_file_reader& from, const Layer& layer,
                          std::uint32_t number, std::size_t max_tokens) {
    std::size_t due = layer.sink.size();
    for (std::uint32_t s = 0; s < layer.segments.size(); ++s) {
      if (layer.segments[s]->first_token() != due) {
        from.fail(part_id{part_kind::index, number, s}.name(),
                  detail::message("begins at token ", layer.segments[s]->first_token(),
                                  "; allowed: ", due));
      }
      due += layer.segments[s]->n_tokens();
    }
    if (due + layer.tail.size() > max_tokens) {
      from.fail(part_id{part_kind::layer, number, 0}.name(),
                detail::message("has ", due + layer.tail.size(), " tokens; allowed: ", max_tokens,
                                " (cache_options::max_tokens)"));
    }
  }
};

}  // namespace wavekv
