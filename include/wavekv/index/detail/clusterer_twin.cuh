// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

/// @file clusterer_twin.cuh
/// @brief Which device code stands for a clusterer of <wavekv/index/concepts.hpp>.

namespace wavekv::device {

/// @brief Specialised for each clusterer that the device knows, beside the header of its CPU twin. A specialisation has
///
/// | expression                                     | semantics                                                        |
/// |------------------------------------------------|------------------------------------------------------------------|
/// | `kind`                                         | a wavekv::detail::lloyd_kind                                     |
/// | `n_iterations`                                 | assignments made                                                 |
/// | `how`                                          | a wavekv::detail::seeding                                        |
/// | `point_dim(key_dim, width)`                    | columns of a point, a multiple of 32                             |
/// | `place(runtime, stream, batch, rows, moments, factors, points)` | enqueues what writes the points that Lloyd's algorithm then clusters; the rows' means and the values' squares are there |
template <class Clusterer>
struct clusterer_twin;

}  // namespace wavekv::device
