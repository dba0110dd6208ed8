// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// @file wavekv.hpp
/// @brief Everything for the CPU.

#include <wavekv/attention/partial_softmax.hpp>
#include <wavekv/buffer/concepts.hpp>
#include <wavekv/buffer/memory_store.hpp>
#include <wavekv/buffer/tiered.hpp>
#include <wavekv/buffer/wave_buffer.hpp>
#include <wavekv/cache/calibration.hpp>
#include <wavekv/cache/kv_cache.hpp>
#include <wavekv/core/dlpack.hpp>
#include <wavekv/core/errors.hpp>
#include <wavekv/core/geometry.hpp>
#include <wavekv/core/ids.hpp>
#include <wavekv/core/scalar.hpp>
#include <wavekv/core/tensor_view.hpp>
#include <wavekv/cpu/backend.hpp>
#include <wavekv/cpu/executor.hpp>
#include <wavekv/index/bounds/error_bound.hpp>
#include <wavekv/index/bounds/exact.hpp>
#include <wavekv/index/bounds/fixed_budget.hpp>
#include <wavekv/index/bounds/verified_bound.hpp>
#include <wavekv/index/concepts.hpp>
#include <wavekv/index/consecutive.hpp>
#include <wavekv/index/query_metric_kmeans.hpp>
#include <wavekv/index/segment_size.hpp>
#include <wavekv/index/spherical_kmeans.hpp>
#include <wavekv/index/summary.hpp>
#include <wavekv/index/tokens_per_cluster.hpp>
#include <wavekv/index/wave_index.hpp>
#include <wavekv/version.hpp>
