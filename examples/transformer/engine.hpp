// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bounds.hpp"
#include "config.hpp"
#include "wave_attention.hpp"

namespace transformer {

struct run_options;
struct tier_options;

/// @brief All that an engine remembers of one sequence; made by the engine, and gone before it.
class sequence {
 public:
  virtual ~sequence() = default;
};

/// @brief A model with its KV cache, wherever the two are: what the programs run. One thread calls it at a time.
class engine {
 public:
  virtual ~engine() = default;

  virtual const model_config& config() const = 0;

  /// @brief An empty sequence, decoded by a bound.
  virtual std::unique_ptr<sequence> start(const any_bound& bound) = 0;

  /// @brief A sequence that begins as a copy of another; sealed segments are shared.
  /// @param probes  asks every question a second time, of full attention, and records how far the two answers lie apart
  virtual std::unique_ptr<sequence> fork(const sequence& from, const any_bound& bound,
                                         bool probes = false) = 0;

  /// @brief See model.
  virtual void prefill(sequence& to, std::span<const token_id> chunk,
                       const std::function<void(double)>& after_layer = {}) = 0;
  virtual void end_prompt(sequence& to) = 0;
  virtual std::span<const float> decode(sequence& to, token_id token) = 0;

  /// @brief Tokens that a sequence has read.
  virtual std::size_t length(const sequence& of) const = 0;
  /// @brief What its decode steps did.
  virtual const decode_record& record(const sequence& of) const = 0;
  /// @brief How far its predicted errors were off, by full-attention layers; empty: they are not calibrated.
  virtual std::vector<wavekv::calibration> calibrations(const sequence& /*of*/) const { return {}; }

  /// @brief Writes a sequence that has read all of a prompt but its last token.
  /// @throw wavekv::io_error; model_error where sequences cannot be saved
  virtual void save(const sequence& from, const std::filesystem::path& path,
                    std::span<const token_id> prompt, const std::string& model);
  /// @brief Reads what save wrote.  @param prompt  written  @throw as save
  virtual std::unique_ptr<sequence> load(const std::filesystem::path& path, const any_bound& bound,
                                         std::vector<token_id>& prompt, const std::string& model);

  /// @brief Says on standard error what there is to say at the end of a run.
  virtual void report() const {}
};

/// @brief The engine that the options ask for.
/// @throw model_error, wavekv::error
std::unique_ptr<engine> make_engine(const run_options& options, const tier_options& tiers);

}  // namespace transformer
