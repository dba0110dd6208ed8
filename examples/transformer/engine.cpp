// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "engine.hpp"

#include <type_traits>
#include <utility>

#include "cuda_engine.hpp"
#include "error.hpp"
#include "model.hpp"
#include "run_options.hpp"
#include "saved_prompt.hpp"
#include "tiers.hpp"

namespace transformer {
namespace {

struct cpu_sequence final : sequence {
  explicit cpu_sequence(transformer::session s) : session(std::move(s)) {}
  transformer::session session;
};

template <class Cache>
class cpu_engine final : public engine {
 public:
  explicit cpu_engine(const run_options& run, typename Cache::options_type options = {})
      : model_(run.model),
        cache_(cache_geometry(model_.config(), model_.n_full_layers()), std::move(options)),
        n_calibrating_(run.calibrate) {}

  const model_config& config() const override { return model_.config(); }

  std::unique_ptr<sequence> start(const any_bound& bound) override {
    auto begun = std::make_unique<attention>(cache_, bound);
    begun->calibrate_with(n_calibrating_);
    return made(model_.start(std::move(begun)));
  }
  std::unique_ptr<sequence> fork(const sequence& from, const any_bound& bound,
                                 bool probes) override {
    std::unique_ptr<full_attention> forked;
    if (probes) {
      forked = std::make_unique<error_probe<Cache>>(attention_of(from), bound);
    } else {
      forked = std::make_unique<attention>(attention_of(from), bound);
    }
    return made(session_of(from).fork(std::move(forked)));
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
    return attention_of(of).record();
  }
  std::vector<wavekv::calibration> calibrations(const sequence& of) const override {
    return attention_of(of).calibrations();
  }

  void save(const sequence& from, const std::filesystem::path& path,
            std::span<const token_id> prompt, const std::string& model) override {
    save_prompt<Cache>(path, session_of(from), prompt, model);
  }
  std::unique_ptr<sequence> load(const std::filesystem::path& path, const any_bound& bound,
                                 std::vector<token_id>& prompt, const std::string& model) override {
    auto saved = load_prompt<Cache>(path, model_, cache_, bound, model);
    prompt = std::move(saved.tokens);
    static_cast<attention&>(*saved.read.attention).calibrate_with(n_calibrating_);
    return made(std::move(saved.read));
  }

  void report() const override {
    if constexpr (std::is_same_v<Cache, tiered_cache>) print_tiers(cache_.stats());
  }

 private:
  using attention = wave_attention<Cache>;

  static std::unique_ptr<sequence> made(session s) {
    return std::make_unique<cpu_sequence>(std::move(s));
  }
  static session& session_of(sequence& s) { return static_cast<cpu_sequence&>(s).session; }
  static const session& session_of(const sequence& s) {
    return static_cast<const cpu_sequence&>(s).session;
  }
  static const attention& attention_of(const sequence& s) {
    return static_cast<const attention&>(*session_of(s).attention);
  }

  model model_;
  Cache cache_;
  std::size_t n_calibrating_;
};

}  // namespace

void engine::save(const sequence& /*from*/, const std::filesystem::path& /*path*/,
                  std::span<const token_id> /*prompt*/, const std::string& /*model*/) {
  throw model_error("a prompt cannot be saved from where it is");
}

std::unique_ptr<sequence> engine::load(const std::filesystem::path& /*path*/,
                                       const any_bound& /*bound*/,
                                       std::vector<token_id>& /*prompt*/,
                                       const std::string& /*model*/) {
  throw model_error("a prompt cannot be loaded to where it would go");
}

std::unique_ptr<engine> make_engine(const run_options& options, const tier_options& tiers) {
  if (options.device == "cuda") return make_cuda_engine(options.model);
  if (tiers.wanted())
    return std::make_unique<cpu_engine<tiered_cache>>(options, tiers.cache_options());
  return std::make_unique<cpu_engine<wavekv::kv_cache<>>>(options);
}

}  // namespace transformer
