// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <wavekv/cache/kv_cache.cuh>
#include <wavekv/core/tensor_view.hpp>

/// @file host_cache.hpp
/// @brief A cache on a device behind the interface of the cache on the CPU, for tests that are written for both.

namespace wavekv_test {

/// @brief Copies host views in, calls, copies results out, collects what the step did.
/// @tparam Cache  a kv_cache on a device
template <class Cache>
class host_cache {
 public:
  using scalar_type = typename Cache::scalar_type;
  using index_type = typename Cache::index_type;
  using bound_type = typename Cache::bound_type;
  using options_type = typename Cache::options_type;
  using runtime_type = typename Cache::runtime_type;
  using stream_type = typename Cache::stream_type;

  explicit host_cache(wavekv::geometry sizes, options_type options = {})
      : cache_(std::move(sizes), std::move(options)), runtime_(cache_.options().runtime) {}

  [[nodiscard]] Cache& on_device() { return cache_; }
  [[nodiscard]] const wavekv::geometry& geometry() const { return cache_.geometry(); }
  [[nodiscard]] const options_type& options() const { return cache_.options(); }
  wavekv::sequence_id create() { return cache_.create(); }
  wavekv::sequence_id fork(wavekv::sequence_id sequence) { return cache_.fork(sequence); }
  void release(wavekv::sequence_id sequence) { cache_.release(sequence); }
  void truncate(wavekv::sequence_id sequence, std::size_t n) { cache_.truncate(sequence, n); }
  void seal(wavekv::sequence_id sequence) { cache_.seal(sequence); }
  [[nodiscard]] std::size_t length(wavekv::sequence_id sequence) const {
    return cache_.length(sequence);
  }
  [[nodiscard]] std::size_t length(wavekv::sequence_id sequence, std::size_t layer) const {
    return cache_.length(sequence, layer);
  }
  [[nodiscard]] wavekv::statistics stats(wavekv::sequence_id sequence) const {
    return cache_.stats(sequence);
  }

  template <class K, class V, class Q = const K>
  void append(wavekv::sequence_id sequence, std::size_t layer, wavekv::tensor_view<K, 3> keys,
              wavekv::tensor_view<V, 3> values, wavekv::tensor_view<Q, 3> queries = {}) {
    const auto k = copy_of(keys);
    const auto v = copy_of(values);
    const auto q = copy_of(queries);
    cache_.append(sequence, layer, k.view(), v.view(), q.view());
    (void)cache_.collect();  // throws what the device saw
  }

  template <class T, class U, class... More>
  wavekv::step_stats attend(std::span<const wavekv::query_run> batch, std::size_t layer,
                            wavekv::tensor_view<T, 3> queries, wavekv::tensor_view<U, 3> out,
                            const More&... more) {
    const auto q = copy_of(queries);
    const auto o = copy_of(out);
    const wavekv::tensor_view<float, 2> lse = find_lse(more...);
    const auto l = copy_of(lse);
    call(batch, layer, q.view(), o.view(), l.view(), more...);
    return finish(o, out, l, lse);
  }

  template <class T, class U, class... More>
  wavekv::step_stats attend(wavekv::sequence_id sequence, std::size_t layer,
                            wavekv::tensor_view<T, 3> queries, wavekv::tensor_view<U, 3> out,
                            const More&... more) {
    const wavekv::query_run run{sequence, queries.extent(0)};
    return attend(std::span<const wavekv::query_run>(&run, 1), layer, queries, out, more...);
  }

  template <class T, class... Bound>
  wavekv::step_stats attend_partial(std::span<const wavekv::query_run> batch, std::size_t layer,
                                    wavekv::tensor_view<T, 3> queries,
                                    const wavekv::partial_output& out, const Bound&... bound) {
    const auto q = copy_of(queries);
    const auto max = copy_of(out.max);
    const auto denominator = copy_of(out.denominator);
    const auto numerator = copy_of(out.numerator);
    cache_.attend_partial(batch, layer, q.view(),
                          {max.view(), denominator.view(), numerator.view()}, bound...);
    max.out_to(out.max);
    denominator.out_to(out.denominator);
    numerator.out_to(out.numerator);
    return cache_.collect();
  }

  template <class Q, class K, class V, class U>
  wavekv::step_stats prefill(wavekv::sequence_id sequence, std::size_t layer,
                             wavekv::tensor_view<Q, 3> queries, wavekv::tensor_view<K, 3> keys,
                             wavekv::tensor_view<V, 3> values, wavekv::tensor_view<U, 3> out,
                             wavekv::tensor_view<float, 2> lse = {}) {
    const auto q = copy_of(queries);
    const auto k = copy_of(keys);
    const auto v = copy_of(values);
    const auto o = copy_of(out);
    const auto l = copy_of(lse);
    cache_.prefill(sequence, layer, q.view(), k.view(), v.view(), o.view(), l.view());
    return finish(o, out, l, lse);
  }

 private:
  // A host view's memory on the device, all that its strides reach, for the length of a call.
  template <class T, std::size_t Rank>
  class copied {
   public:
    using element = std::remove_const_t<T>;

    copied(host_cache& owner, const wavekv::tensor_view<T, Rank>& host)
        : runtime_(owner.runtime_), host_(host) {
      if (host.empty()) return;
      n_ = 1;
      for (std::size_t i = 0; i < Rank; ++i) {
        if (host.extent(i) == 0) n_ = 0;
        n_ += host.extent(i) == 0 ? 0 : (host.extent(i) - 1) * host.stride(i);
      }
      n_ = std::max<std::size_t>(n_, 1);
      data_ = static_cast<element*>(runtime_.allocate(n_ * sizeof(element), {}));
      if (host.extent(0) != 0) runtime_.copy_in(data_, host.data(), n_ * sizeof(element), {});
    }
    copied(const copied&) = delete;
    copied& operator=(const copied&) = delete;
    ~copied() { runtime_.deallocate(data_, n_ * sizeof(element), {}); }

    [[nodiscard]] wavekv::device_view<T, Rank> view() const {
      return {data_, host_.extents(), host_.strides()};
    }
    void out_to(const wavekv::tensor_view<T, Rank>& host) const {
      if (data_ != nullptr && host.extent(0) != 0) {
        runtime_.copy_out(host.data(), data_, n_ * sizeof(element), {});
      }
    }

   private:
    runtime_type runtime_;
    wavekv::tensor_view<T, Rank> host_;
    std::size_t n_ = 0;
    element* data_ = nullptr;
  };
  template <class T, std::size_t Rank>
  copied<T, Rank> copy_of(const wavekv::tensor_view<T, Rank>& host) {
    return copied<T, Rank>(*this, host);
  }

  static wavekv::tensor_view<float, 2> find_lse() { return {}; }
  template <class First, class... More>
  static wavekv::tensor_view<float, 2> find_lse(const First& first, const More&... more) {
    if constexpr (std::is_same_v<First, wavekv::tensor_view<float, 2>>) {
      return first;
    } else {
      return find_lse(more...);
    }
  }

  template <class Q, class O, class L>
  void call(std::span<const wavekv::query_run> batch, std::size_t layer, Q queries, O out, L lse) {
    cache_.attend(batch, layer, queries, out, lse);
  }
  template <class Q, class O, class L, class First, class... More>
  void call(std::span<const wavekv::query_run> batch, std::size_t layer, Q queries, O out, L lse,
            const First& first, const More&... more) {
    if constexpr (wavekv::estimation_bound<First>) {
      cache_.attend(batch, layer, queries, out, lse, first);
    } else {
      call(batch, layer, queries, out, lse, more...);
    }
  }

  template <class Out, class U, class Lse>
  wavekv::step_stats finish(const Out& o, const wavekv::tensor_view<U, 3>& out, const Lse& l,
                            const wavekv::tensor_view<float, 2>& lse) {
    o.out_to(out);
    l.out_to(lse);
    return cache_.collect();
  }

  Cache cache_;
  runtime_type runtime_;
};

}  // namespace wavekv_test
