// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>

using wavekv::geometry;

namespace {

template <class Change>
void refused(const std::vector<std::string>& parts, Change&& change) {
  geometry sizes;
  sizes.n_layers = 2;
  sizes.n_query_heads = 8;
  sizes.n_kv_heads = 2;
  sizes.validate();
  change(sizes);
  try {
    sizes.validate();
    FAIL_CHECK("nothing was thrown; expected ", parts.front());
  } catch (const wavekv::config_error& error) {
    const std::string text = error.what();
    for (const std::string& part : parts) {
      CHECK_MESSAGE(text.find(part) != std::string::npos, "'", part, "' is not in '", text, "'");
    }
    CHECK(text.find("allowed") != std::string::npos);
  }
}

}  // namespace

TEST_CASE("a geometry names the field, the value seen and the values allowed") {
  refused({"n_layers is 0"}, [](geometry& g) { g.n_layers = 0; });
  refused({"n_layers is 65537", "65536"}, [](geometry& g) { g.n_layers = 65537; });
  refused({"n_query_heads is 0"}, [](geometry& g) { g.n_query_heads = 0; });
  refused({"n_kv_heads is 0"}, [](geometry& g) { g.n_kv_heads = 0; });
  refused({"n_query_heads is 8", "multiple", "3"}, [](geometry& g) { g.n_kv_heads = 3; });
  refused({"n_query_heads is 8", "16"}, [](geometry& g) { g.n_kv_heads = 16; });
  refused({"key_dim is 0"}, [](geometry& g) { g.key_dim = 0; });
  refused({"value_dim is 16385", "16384"}, [](geometry& g) { g.value_dim = 16385; });
  refused({"scale is -1"}, [](geometry& g) { g.scale = -1.0F; });
  refused({"scale is", "nan"}, [](geometry& g) { g.scale = NAN; });
  refused({"logit_softcap is inf"}, [](geometry& g) { g.logit_softcap = HUGE_VALF; });
  refused({"logit_softcap is -3"}, [](geometry& g) { g.logit_softcap = -3.0F; });
  refused({"sink_logits has 8", "16"}, [](geometry& g) { g.sink_logits.assign(8, 0.0F); });
  refused({"sink_logits holds", "nan"}, [](geometry& g) { g.sink_logits.assign(16, NAN); });
}

TEST_CASE("defaults and derived sizes") {
  geometry sizes;
  sizes.n_query_heads = 32;
  sizes.n_kv_heads = 8;
  sizes.key_dim = 64;
  CHECK(sizes.group_size() == 4);
  CHECK(sizes.logit_scale() == 0.125F);
  sizes.scale = 0.5F;
  CHECK(sizes.logit_scale() == 0.5F);
}

TEST_CASE("ids compare and print") {
  using wavekv::sequence_id;
  CHECK(sequence_id{1, 2} == sequence_id{1, 2});
  CHECK(sequence_id{1, 2} != sequence_id{1, 3});
  CHECK(sequence_id{1, 2} < sequence_id{2, 0});
  CHECK(sequence_id{} != sequence_id{0, 0});  // the default names nothing
  std::ostringstream text;
  text << sequence_id{3, 7};
  CHECK(text.str() == "3.7");
}
