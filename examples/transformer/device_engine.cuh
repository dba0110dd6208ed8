// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "engine.hpp"
#include "model.cuh"

namespace transformer {

/// @brief A model and its KV cache on a device.
/// @tparam Machine  see device_model
template <class Machine>
class device_engine : public engine {
 public:
  using runtime_type = typename Machine::runtime_type;
  using stream_type = typename runtime_type::stream_type;

  /// @param stream  everything is done in it; outlives the engine
  /// @throw as device_model
  device_engine(const std::filesystem::path& directory, const runtime_type& runtime,
                stream_type stream)
      : stream_(stream),
        multiply_(runtime, stream),
        model_(directory, runtime, multiply_, stream),
        cache_(cache_geometry(model_.config(), model_.n_full_layers()), cache_options(runtime)) {}

  /// @brief Waits for what the last calls left in the stream.
  ~device_engine() override {
    try {
      cache_.synchronize(stream_);
    } catch (...) {  // whoever waited for a result was told
    }
  }
  device_engine(const device_engine&) = delete;
  device_engine& operator=(const device_engine&) = delete;

  const model_config& config() const override { return model_.config(); }

  std::unique_ptr<sequence> start(const any_bound& bound) override {
    return made(model_.start(cache_, bound));
  }
  std::unique_ptr<sequence> fork(const sequence& from, const any_bound& bound,
                                 bool probes) override {
    return made(model_.fork(session_of(from), bound, probes));
  }

  void prefill(sequence& to, std::span<const token_id> chunk,
               const std::function<void(double)>& after_layer) override {
    model_.prefill(session_of(to), chunk, after_layer);
  }
  void end_prompt(sequence& to) override { model_.end_prompt(session_of(to)); }
  std::span<const float> decode(sequence& to, token_id token) override {
    return model_.decode(session_of(to), token);
  }

  std::size_t length(const sequence& of) const override { return session_of(of).n_tokens; }
  const decode_record& record(const sequence& of) const override {
    return session_of(of).attention->record();
  }

 private:
  using session_type = device_session<Machine>;

  struct device_sequence final : sequence {
    explicit device_sequence(session_type s) : session(std::move(s)) {}
    session_type session;
  };

  static auto cache_options(const runtime_type& runtime) {
    typename Machine::cache_type::options_type options;
    options.runtime = runtime;
    return options;
  }
  static std::unique_ptr<sequence> made(session_type session) {
    return std::make_unique<device_sequence>(std::move(session));
  }
  static session_type& session_of(sequence& s) { return static_cast<device_sequence&>(s).session; }
  static const session_type& session_of(const sequence& s) {
    return static_cast<const device_sequence&>(s).session;
  }

  stream_type stream_;
  typename Machine::product_type multiply_;
  device_model<Machine> model_;
  typename Machine::cache_type cache_;
};

}  // namespace transformer
