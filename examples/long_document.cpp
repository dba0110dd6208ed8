// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A long document is read once, by the example's transformer, and saved with its index. The next start of the program
// loads it, most of it left in the file, and asks several questions, each on a fork: they share all that was read.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "generation.hpp"
#include "model.hpp"
#include "needle.hpp"
#include "run_options.hpp"
#include "sampler.hpp"
#include "saved_prompt.hpp"
#include "tiers.hpp"
#include "tokenizer.hpp"

namespace {

using namespace transformer;

struct options : run_options {
  std::filesystem::path file = "document.wavekv";
  tier_options tiers{std::size_t{16} << 20U, {}};
  std::size_t n_tokens = 131072;
  std::size_t n_questions = 5;
  std::string cache = "default";
};

// The document: the project's own text with facts hidden in it, which the model was trained to find.
haystack make_document(const options& chosen, needle_maker& maker) {
  return maker.make(chosen.n_tokens, chosen.n_questions + 10, chosen.seed);
}

void read_document(const options& chosen, model& model, tiered_cache& cache,
                   const haystack& document) {
  auto session = model.start(
      std::make_unique<wave_attention<tiered_cache>>(cache, tiered_cache::bound_type{}));
  double begin = seconds_now();
  read_prompt(model, session, document.tokens, chosen.chunk);
  std::printf("read %zu tokens in %.1f s\n", session.n_tokens, seconds_now() - begin);
  begin = seconds_now();
  save_prompt<tiered_cache>(chosen.file, session, document.tokens, model_name(chosen));
  std::printf("saved them in %.2f s: %s, %.0f MB; start again to ask\n", seconds_now() - begin,
              chosen.file.c_str(),
              static_cast<double>(std::filesystem::file_size(chosen.file)) * 1e-6);
}

void ask(const options& chosen, model& model, tokenizer& tokenizer, tiered_cache& cache,
         needle_maker& maker, const haystack& document) {
  double begin = seconds_now();
  const saved_prompt saved = load_prompt<tiered_cache>(
      chosen.file, model, cache, make_bound(chosen.cache, chosen), model_name(chosen));
  std::printf("loaded %zu tokens in %.3f s\n", saved.read.n_tokens, seconds_now() - begin);
  std::size_t n_right = 0;
  for (std::size_t i = 0; i < chosen.n_questions; ++i) {
    const needle& asked = document.needles[i * document.needles.size() / chosen.n_questions];
    begin = seconds_now();
    session fork = saved.read.fork();
    std::vector<token_id> question{saved.tokens.back()};  // what was not read yet
    for (const token_id token : maker.question(asked.word)) question.push_back(token);
    read_prompt(model, fork, question, chosen.chunk);
    const generation answer =
        generate(model, fork, question.back(), sampler({}), {.max_tokens = 6});
    const std::string number = leading_number(tokenizer.decode(answer.tokens));
    n_right += number == asked.number ? 1 : 0;
    std::printf("the magic number of %-12s at %3.0f %% of the text: %s (%s), %.2f s\n",
                asked.word.c_str(), 100 * asked.depth, number.c_str(),
                number == asked.number ? "right" : "WRONG", seconds_now() - begin);
  }
  std::printf("%zu of %zu right\n", n_right, chosen.n_questions);
  std::fflush(stdout);
  print_tiers(cache.stats());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Reads a long document once and saves it; the next start asks questions about it.");
  options chosen;
  add_common_options(app, chosen);
  add_tier_options(app, chosen.tiers);
  app.add_option("--file", chosen.file, "The saved document: made when it is not there")
      ->capture_default_str();
  app.add_option("--tokens", chosen.n_tokens, "Length of the document")->capture_default_str();
  app.add_option("--questions", chosen.n_questions, "How many to ask")->capture_default_str();
  app.add_option("--cache", chosen.cache, "How attention reads the cache, as in wavekv_generate")
      ->capture_default_str()
      ->check(CLI::IsMember(bound_names()));
  CLI11_PARSE(app, argc, argv);
  try {
    use_threads(chosen);
    model model(chosen.model);
    tokenizer tokenizer(chosen.model);
    needle_maker maker(tokenizer, haystack_text(haystack_path(chosen)), needle_words(chosen.model));
    const haystack document = make_document(chosen, maker);
    tiered_cache cache(cache_geometry(model.config(), model.n_full_layers()),
                       chosen.tiers.cache_options());
    if (std::filesystem::exists(chosen.file)) {
      ask(chosen, model, tokenizer, cache, maker, document);
    } else {
      read_document(chosen, model, cache, document);
    }
    return 0;
  } catch (const std::exception& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "wavekv_long_document: %s\n", e.what());
    return 1;
  }
}
