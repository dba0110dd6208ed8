// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "random_llama.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <wavekv/core/scalar.hpp>

#include "byte_level.hpp"

namespace wavekv_bench {
namespace {

using nlohmann::json;

struct tensor {
  std::string name;
  std::vector<std::size_t> shape;

  [[nodiscard]] std::size_t n_elements() const noexcept {
    std::size_t n = 1;
    for (const std::size_t extent : shape) n *= extent;
    return n;
  }
  [[nodiscard]] bool is_norm() const noexcept { return shape.size() == 1; }
};

std::vector<tensor> tensors_of(const llama_shape& shape) {
  const std::size_t hidden = shape.hidden_size;
  const std::size_t query_width = shape.n_query_heads * shape.head_dim;
  const std::size_t kv_width = shape.n_kv_heads * shape.head_dim;
  std::vector<tensor> tensors = {{"model.embed_tokens.weight", {shape.vocab_size, hidden}}};
  for (std::size_t i = 0; i < shape.n_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    tensors.push_back({layer + "input_layernorm.weight", {hidden}});
    tensors.push_back({layer + "self_attn.q_proj.weight", {query_width, hidden}});
    tensors.push_back({layer + "self_attn.k_proj.weight", {kv_width, hidden}});
    tensors.push_back({layer + "self_attn.v_proj.weight", {kv_width, hidden}});
    tensors.push_back({layer + "self_attn.o_proj.weight", {hidden, query_width}});
    tensors.push_back({layer + "post_attention_layernorm.weight", {hidden}});
    tensors.push_back({layer + "mlp.gate_proj.weight", {shape.intermediate_size, hidden}});
    tensors.push_back({layer + "mlp.up_proj.weight", {shape.intermediate_size, hidden}});
    tensors.push_back({layer + "mlp.down_proj.weight", {hidden, shape.intermediate_size}});
  }
  tensors.push_back({"model.norm.weight", {hidden}});
  return tensors;
}

json config_of(const llama_shape& shape) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"hidden_act", "silu"},
          {"dtype", "bfloat16"},
          {"vocab_size", shape.vocab_size},
          {"hidden_size", shape.hidden_size},
          {"intermediate_size", shape.intermediate_size},
          {"num_hidden_layers", shape.n_layers},
          {"num_attention_heads", shape.n_query_heads},
          {"num_key_value_heads", shape.n_kv_heads},
          {"head_dim", shape.head_dim},
          {"max_position_embeddings", 131072},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 500000.0},
          {"rope_scaling",
           {{"rope_type", "llama3"},
            {"factor", 32.0},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", 8192}}},
          {"tie_word_embeddings", true}};
}

json byte_tokenizer() {
  json vocabulary = json::object();
  for (unsigned byte = 0; byte < 256; ++byte)
    vocabulary[std::string(transformer::byte_to_unicode(static_cast<unsigned char>(byte)))] = byte;
  return {{"version", "1.0"},
          {"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", true},
            {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}}};
}

void write_json(const std::filesystem::path& path, const json& value) {
  std::ofstream out(path);
  out << value.dump(1) << '\n';
  if (!out) throw std::runtime_error(path.string() + ": cannot write");
}

/// Many generators side by side (xorshift64), so that the compiler can vectorise them.
class random_weights {
 public:
  explicit random_weights(std::uint64_t seed) {
    for (std::size_t i = 0; i < states_.size(); ++i)
      states_[i] = (seed + i + 1) * 0x9E37'79B9'7F4A'7C15U | 1U;
    // Uniform on a grid of 2^12 values with the standard deviation of the initialiser.
    constexpr float half_width = 0.02F * 1.7320508F;
    for (std::size_t i = 0; i < table_.size(); ++i)
      table_[i] = wavekv::from_float<wavekv::bf16>(
          half_width * (static_cast<float>(2 * i + 1) / static_cast<float>(table_.size()) - 1.0F));
  }

  void fill(wavekv::bf16* to, std::size_t n) noexcept {
    for (std::size_t i = 0; i < n;) {
      for (std::uint64_t& state : states_) {
        state ^= state << 13U;
        state ^= state >> 7U;
        state ^= state << 17U;
      }
      for (std::size_t s = 0; s < states_.size() && i < n; ++s) {
        for (unsigned shift = 4; shift < 64 && i < n; shift += 12)
          to[i++] = table_[states_[s] >> shift & (table_.size() - 1)];
      }
    }
  }

 private:
  std::array<std::uint64_t, 16> states_{};
  std::array<wavekv::bf16, 4096> table_{};
};

/// A file that is on the disk once close() has returned.
class output_file {
 public:
  explicit output_file(std::filesystem::path path)
      : path_(std::move(path)),
        descriptor_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail("cannot create");
  }
  ~output_file() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  output_file(const output_file&) = delete;
  output_file& operator=(const output_file&) = delete;

  void write(const void* data, std::size_t n_bytes) {
    const char* from = static_cast<const char*>(data);
    while (n_bytes > 0) {
      const ssize_t n = ::write(descriptor_, from, n_bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail("cannot write");
      from += n;
      n_bytes -= static_cast<std::size_t>(n);
    }
  }

  void close() {
    if (::fsync(descriptor_) != 0)
      fail("cannot write");  // writing back later would be timed as well
    // Out of the page cache: a checkpoint is loaded by who uses it, and in the pages that suit that.
    (void)::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot write");
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error(path_.string() + ": " + what + ": " + std::strerror(errno));
  }

  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace

void write_random_llama(const std::filesystem::path& directory, const llama_shape& shape,
                        std::uint64_t seed) {
  write_json(directory / "config.json", config_of(shape));
  write_json(directory / "tokenizer.json", byte_tokenizer());

  const std::vector<tensor> tensors = tensors_of(shape);
  json header = {{"__metadata__", {{"format", "pt"}}}};
  std::size_t offset = 0;
  for (const tensor& each : tensors) {
    const std::size_t end = offset + each.n_elements() * sizeof(wavekv::bf16);
    header[each.name] = {{"dtype", "BF16"}, {"shape", each.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data begins aligned
  std::array<unsigned char, 8> length{};
  for (std::size_t i = 0; i < length.size(); ++i)
    length[i] = static_cast<unsigned char>(text.size() >> (8 * i) & 0xFFU);

  output_file file(directory / "model.safetensors");
  file.write(length.data(), length.size());
  file.write(text.data(), text.size());
  random_weights random(seed);
  std::vector<wavekv::bf16> part(std::size_t{1} << 20U);
  for (const tensor& each : tensors) {
    for (std::size_t left = each.n_elements(); left > 0;) {
      const std::size_t n = std::min(left, part.size());
      if (each.is_norm()) {
        std::fill_n(part.data(), n, wavekv::from_float<wavekv::bf16>(1.0F));
      } else {
        random.fill(part.data(), n);
      }
      file.write(part.data(), n * sizeof(wavekv::bf16));
      left -= n;
    }
  }
  file.close();
}

}  // namespace wavekv_bench
