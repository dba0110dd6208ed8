// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <wavekv/cpu/simd.hpp>
#include <wavekv/file/byte_stream.hpp>
#include <wavekv/index/segment.hpp>

/// @file segment_part.hpp
/// @brief A segment's index as a part of a saved sequence.

namespace wavekv {

/// @brief Puts an image and the checksums of its blocks into a part.
/// @param image  a segment<T, …>::image
template <class Image>
void put_segment(byte_writer& to, const Image& image, std::span<const std::uint32_t> checksums) {
  to.put(std::uint64_t{image.first_token});
  to.put(std::uint64_t{image.n_tokens});
  to.put(std::uint64_t{image.n_levels});
  to.put(std::uint64_t{image.n_heads()});
  for (const auto& head : image.n_nodes) {
    to.put_array(std::span<const std::uint32_t>(head));
  }
  const auto put = [&](const auto& array) { to.put_array(std::span(array.data(), array.size())); };
  put(image.value_spread);
  put(image.summaries);
  put(image.numbers);
  put(image.links);
  put(image.order);
  to.put_array(checksums);
}

namespace detail {

/// Whether the links of one level cut what lies below into as many runs as there are nodes, none of them empty; adds up
/// the tokens under each node.
inline bool links_are_sound(std::span<const std::uint32_t> links, std::uint32_t n_below,
                            std::span<const std::uint32_t> tokens_below,
                            std::vector<std::uint32_t>& tokens) {
  tokens.clear();
  if (links.front() != 0 || links.back() != n_below) {
    return false;
  }
  for (std::size_t node = 0; node + 1 < links.size(); ++node) {
    if (links[node] >= links[node + 1] || links[node + 1] > n_below) {
      return false;
    }
    std::uint32_t sum = links[node + 1] - links[node];
    if (!tokens_below.empty()) {
      sum = 0;
      for (std::uint32_t child = links[node]; child < links[node + 1]; ++child) {
        sum += tokens_below[child];
      }
    }
    tokens.push_back(sum);
  }
  return true;
}

/// Looks at everything in an image that other code relies on.
template <class Image>
void check_image(const byte_reader& from, const Image& image) {
  const auto all_finite = [&](const auto& array) {
    return simd::all_finite(array.data(), array.size()) == array.size();
  };
  if (!all_finite(image.summaries) || !all_finite(image.numbers) ||
      !all_finite(image.value_spread)) {
    from.fail("holds a number that is not finite");
  }
  // Where the arrays of (level, head) begin.
  std::size_t first_node = 0;
  std::size_t first_link = 0;
  std::vector<std::vector<std::uint32_t>> tokens(image.n_heads());  // under the nodes below
  std::vector<std::vector<std::span<const std::uint32_t>>> links(
      image.n_levels, std::vector<std::span<const std::uint32_t>>(image.n_heads()));
  std::vector<std::vector<std::span<const float>>> numbers(
      image.n_levels, std::vector<std::span<const float>>(image.n_heads()));
  for (std::size_t level = image.n_levels; level-- > 0;) {
    for (std::size_t h = 0; h < image.n_heads(); ++h) {
      const std::size_t n = image.n_nodes[h][level];
      links[level][h] = {image.links.data() + first_link, n + 1};
      numbers[level][h] = {image.numbers.data() + 2 * first_node, 2 * n};
      first_link += n + 1;
      first_node += n;
    }
  }
  std::vector<std::uint32_t> here;
  for (std::size_t level = 0; level < image.n_levels; ++level) {
    for (std::size_t h = 0; h < image.n_heads(); ++h) {
      const auto n_below =
          static_cast<std::uint32_t>(level == 0 ? image.n_tokens : image.n_nodes[h][level - 1]);
      if (!links_are_sound(links[level][h], n_below, tokens[h], here)) {
        from.fail(
            message("has children of head ", h, ", level ", level, " that are not cut into runs"));
      }
      const std::span<const float> sizes = numbers[level][h].first(here.size());
      const std::span<const float> dispersions = numbers[level][h].subspan(here.size());
      for (std::size_t node = 0; node < here.size(); ++node) {
        if (sizes[node] != static_cast<float>(here[node]) || dispersions[node] < 0.0F) {
          from.fail(message("says size ", sizes[node], " and dispersion ", dispersions[node],
                            " of a node of ", here[node], " tokens"));
        }
      }
      tokens[h].swap(here);
    }
  }
  std::vector<bool> seen(image.n_tokens);
  for (std::size_t h = 0; h < image.n_heads(); ++h) {
    seen.assign(image.n_tokens, false);
    for (std::size_t i = 0; i < image.n_tokens; ++i) {
      const std::size_t token = image.order[h * image.n_tokens + i];
      if (token >= image.n_tokens || seen[token]) {
        from.fail(message("has token ", token, " twice, or too far, in head ", h));
      }
      seen[token] = true;
    }
  }
}

}  // namespace detail

/// @brief What put_segment put, looked through: nothing that other code relies on is taken on trust.
/// @param width      key_dim + value_dim
/// @param checksums  [n_blocks], written
/// @throw format_error
template <class Image>
Image get_segment(byte_reader& from, std::size_t n_heads, std::size_t n_levels, std::size_t width,
                  std::vector<std::uint32_t>& checksums) {
  Image image;
  image.first_token = from.get<std::uint64_t>();
  const auto n_tokens = from.get<std::uint64_t>();
  const auto levels = from.get<std::uint64_t>();
  const auto heads = from.get<std::uint64_t>();
  if (n_tokens < 1 || n_tokens > 65536 || levels != n_levels || heads != n_heads) {
    from.fail(detail::message("has ", n_tokens, " tokens, ", levels, " levels, ", heads,
                              " heads; allowed: 1 to 65536, ", n_levels, ", ", n_heads));
  }
  image.n_tokens = n_tokens;
  image.n_levels = levels;
  image.n_nodes.resize(n_heads);
  std::size_t n_blocks = 0;
  for (auto& head : image.n_nodes) {
    from.get_array(std::span<std::uint32_t>(head));
    std::size_t most = image.n_tokens;
    for (std::size_t level = 0; level < head.size(); ++level) {
      const std::size_t n = head[level];
      if (level < image.n_levels ? n < 1 || n > most : n != 0) {
        from.fail(detail::message("has ", n, " nodes at level ", level,
                                  "; allowed: ", level < image.n_levels ? 1 : 0, " to ",
                                  level < image.n_levels ? most : 0));
      }
      most = n;
    }
    n_blocks += head[0];
  }
  const std::size_t n_nodes = image.n_all_nodes();
  (void)from.require<std::byte>(n_nodes * width * sizeof(image.summaries[0]) +
                                n_heads * image.n_tokens * sizeof(std::uint16_t));
  image.value_spread.resize(n_heads);
  image.make_arenas(width);
  checksums.resize(n_blocks);
  const auto get = [&](auto& array) { from.get_array(std::span(array.data(), array.size())); };
  get(image.value_spread);
  get(image.summaries);
  get(image.numbers);
  get(image.links);
  get(image.order);
  get(checksums);
  detail::check_image(from, image);
  return image;
}

}  // namespace wavekv
