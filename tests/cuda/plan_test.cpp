// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <wavekv/index/bounds/error_bound.cuh>
#include <wavekv/index/bounds/fixed_budget.cuh>
#include <wavekv/index/bounds/verified_bound.cuh>
#include <wavekv/index/detail/select.cuh>

#include "conformance/index_law.hpp"
#include "cuda/emulated_runtime.hpp"

// What bounds choose on the device from the very numbers that they get on the CPU: the same zones, bit for bit.

using namespace wavekv_test;
using wavekv::zone;
using wavekv::testing::emulated_runtime;
using wavekv::testing::emulation_options;
using wavekv::testing::schedule;
namespace device = wavekv::device;

namespace {

/// Asks a bound about one frontier.
template <class Bound>
struct plan_kernel {
  static constexpr unsigned n_threads = 256;

  Bound bound;
  device::frontier_view nodes;
  zone* zones;

  std::size_t shared_bytes() const {
    device::shared_arena arena;
    (void)device::plan_memory::take(arena, n_threads / device::warp_size, nodes.group_size);
    return arena.used();
  }

  template <class Block>
  void operator()(Block& b) const {
    device::shared_arena arena(b.shared());
    const auto memory = device::plan_memory::take(arena, b.n_warps(), nodes.group_size);
    for (unsigned i = b.thread(); i < nodes.n_columns; i += n_threads) zones[i] = zone::estimation;
    b.sync();
    plan_on_device(b, bound, nodes, zones, memory);
  }
};

/// Device memory that holds what is put in.
class uploads {
 public:
  explicit uploads(const emulation_options& options) : runtime_(options) {}
  uploads(const uploads&) = delete;
  uploads& operator=(const uploads&) = delete;
  ~uploads() {
    for (const auto& [memory, bytes] : memory_) runtime_.deallocate(memory, bytes, {});
  }

  emulated_runtime& runtime() { return runtime_; }
  template <class Element>
  Element* put(const std::vector<Element>& from) {
    const std::size_t bytes = std::max<std::size_t>(from.size(), 1) * sizeof(Element);
    void* const to = runtime_.allocate(bytes, {});
    memory_.emplace_back(to, bytes);
    runtime_.copy_in(to, from.data(), from.size() * sizeof(Element), {});
    return static_cast<Element*>(to);
  }

 private:
  emulated_runtime runtime_;
  std::vector<std::pair<void*, std::size_t>> memory_;
};

template <class Bound>
std::vector<zone> plan_on_cpu(const Bound& bound, const frontier_data& data) {
  std::vector<zone> zones(data.view.n_nodes, zone::estimation);
  bound.plan(data.view, std::span(zones));
  return zones;
}

/// The zones of the nodes, which stand in columns among empty ones.
template <class Bound>
std::vector<zone> plan_on_device(const Bound& bound, const frontier_data& data,
                                 random_engine& random, schedule order) {
  emulation_options options;
  options.order = order;
  options.seed = random();
  uploads memory(options);
  const std::size_t n_nodes = data.view.n_nodes;
  std::vector<std::size_t> column_of(n_nodes);
  std::size_t n_columns = random() % 3;
  for (std::size_t& column : column_of) {
    column = n_columns++;
    if (random() % 4 == 0) n_columns += random() % 5;
  }
  const std::size_t stride = n_columns + 3;
  const auto spread = [&](const std::vector<float>& from, std::size_t n_rows, float empty) {
    std::vector<float> to(n_rows * stride, empty);
    for (std::size_t row = 0; row < n_rows; ++row) {
      for (std::size_t i = 0; i < n_nodes; ++i)
        to[row * stride + column_of[i]] = from[row * n_nodes + i];
    }
    return memory.put(to);
  };
  const std::size_t group = data.view.group_size;
  plan_kernel<Bound> kernel;
  kernel.bound = bound;
  device::frontier_view& nodes = kernel.nodes;
  nodes.level = static_cast<unsigned>(data.view.level);
  nodes.n_columns = static_cast<unsigned>(n_columns);
  nodes.n_nodes = static_cast<unsigned>(n_nodes);
  nodes.group_size = static_cast<unsigned>(group);
  nodes.n_clusters = static_cast<unsigned>(data.view.n_clusters);
  nodes.n_tokens = static_cast<unsigned>(data.view.n_tokens);
  nodes.n_steady_tokens = static_cast<unsigned>(data.view.n_steady_tokens);
  nodes.stride = static_cast<unsigned>(stride);
  nodes.sizes = spread(data.size, 1, 0.0F);
  nodes.shares = spread(data.share, group, 0.0F);
  nodes.errors = spread(data.error, group, 0.0F);
  nodes.nearnesses = spread(data.nearness, group, -HUGE_VALF);
  nodes.ranked_shares = spread(data.ranked_share, 1, 0.0F);
  nodes.ranked_errors = spread(data.ranked_error, 1, 0.0F);
  nodes.settled = memory.put(data.settled);
  nodes.log_normalizers = memory.put(data.log_normalizer);
  kernel.zones = memory.put(std::vector<zone>(stride));
  memory.runtime().launch({}, device::grid{1, 1}, kernel);
  std::vector<zone> in_columns(stride);
  memory.runtime().copy_out(in_columns.data(), kernel.zones, stride * sizeof(zone), {});
  std::vector<zone> zones;
  for (const std::size_t column : column_of) zones.push_back(in_columns[column]);
  return zones;
}

/// Rounds errors so that sums of their squares have no rounding, in whatever order: what is compared is the plan, not a sum.
template <class Ranking>
void make_exact(frontier_data& data) {
  const std::size_t n = data.view.n_nodes;
  for (float& x : data.error) x = std::min(std::round(x * 0x1p12F), 255.0F) * 0x1p-12F;
  for (float& x : data.settled) x = 0.0F * x;
  for (std::size_t i = 0; i < n; ++i) {
    data.ranked_error[i] = data.error[i];
    for (std::size_t g = 1; g < data.view.group_size; ++g)
      data.ranked_error[i] = Ranking::combine(data.ranked_error[i], data.error[g * n + i]);
  }
}

constexpr schedule all_schedules[] = {schedule::forwards, schedule::backwards, schedule::random};

template <class Bound>
void check_bound(const std::vector<Bound>& bounds) {
  using ranking = wavekv::detail::bound_ranking_t<Bound>;
  const std::uint64_t seed = std::random_device{}();
  CAPTURE(seed);
  random_engine random(seed);
  for (const Bound& bound : bounds) {
    for (const key_family family : all_families) {
      for (const std::size_t group : {1U, 3U, 8U, 12U}) {
        const std::size_t n_nodes = 1 + random() % (random() % 3 == 0 ? 1500 : 150);
        const std::size_t level = random() % 3;
        auto data = frontier_data::random<ranking>(random, level, n_nodes, group, family);
        make_exact<ranking>(data);
        if (random() % 2 == 0) {  // of any sign, and with ties, as logits are
          for (float& x : data.nearness) x = std::round(x * 4e3F) * 0.25F - 1.0F;
        }
        CAPTURE(name_of(family));
        CAPTURE(group);
        CAPTURE(n_nodes);
        CAPTURE(level);
        const schedule order = all_schedules[random() % 3];
        const std::vector<zone> expected = plan_on_cpu(bound, data);
        CHECK(plan_on_device(bound, data, random, order) == expected);
      }
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("error_bound chooses the same zones on the device", Ranking, wavekv::rank_by_max,
                   wavekv::rank_by_sum) {
  using bound = wavekv::error_bound<Ranking>;
  bound reads_little;
  reads_little.epsilon = 0.002F;
  reads_little.free_tokens = 20;
  reads_little.hidden_share = 0.0F;
  bound no_floors;
  no_floors.epsilon = 0.01F;
  no_floors.floor_open = no_floors.floor_read = no_floors.hidden_share = 0.0F;
  no_floors.max_open = no_floors.max_read = 1.0F;
  bound shrinks;
  shrinks.full_tokens = 100;
  shrinks.free_tokens = 0;
  shrinks.epsilon = 1e-4F;
  bound calibrated = no_floors;
  calibrated.error_scale = 4.0F;
  bound hides_little;
  hides_little.hidden_share = 1e-4F;
  bound opens_few;
  opens_few.epsilon = 1e6F;
  opens_few.hidden_share = 0.0F;
  opens_few.least_open = 2;
  bound opens_all = opens_few;
  opens_all.least_open = 1'000'000;
  check_bound<bound>(
      {bound{}, reads_little, no_floors, shrinks, calibrated, hides_little, opens_few, opens_all});
}

TEST_CASE_TEMPLATE("fixed_budget chooses the same zones on the device", Ranking,
                   wavekv::rank_by_turns, wavekv::rank_by_sum, wavekv::rank_by_max) {
  using bound = wavekv::basic_fixed_budget<Ranking>;
  check_bound<bound>({bound{}, bound{.retrieve = 0.3F, .estimate = 0.6F},
                      bound{.retrieve = 0.0F, .estimate = 0.5F},
                      bound{.retrieve = 0.05F, .estimate = 0.0F},
                      bound{.retrieve = 0.0F, .estimate = 0.0F},
                      bound{.retrieve = 0.4F, .estimate = 0.6F, .least_per_head = 0}});
}

TEST_CASE("verified_bound plans as on the CPU: its rule, and what may hide a token") {
  wavekv::verified_bound<> bound;
  bound.rule.free_tokens = 8;
  check_bound<wavekv::verified_bound<>>({bound, bound.tightened()});
}

TEST_CASE("order keys order as floats do, and -0 equals 0") {
  const float rising[] = {-HUGE_VALF, -3e38F, -1.0F, -1e-45F, 0.0F, 1e-45F, 1.0F, HUGE_VALF};
  for (std::size_t i = 0; i < std::size(rising); ++i) {
    CHECK(device::from_order_key(device::order_key(rising[i])) == rising[i]);
    if (i > 0) CHECK(device::order_key(rising[i]) > device::order_key(rising[i - 1]));
  }
  CHECK(device::order_key(-0.0F) == device::order_key(0.0F));
}
