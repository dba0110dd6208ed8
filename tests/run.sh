#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash tests/run.sh [arguments for ctest]: sets up, builds and runs all tests. Where nvcc is, they include what it compiles
# (label nvcc); what needs a GPU is run_cuda.sh's.
# WAVEKV_BUILD_DIR names another build folder than build/release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/packages.sh
source .ci/cuda.sh

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_tests
cuda=OFF
if have_nvcc; then
  cuda=ON
  # shellcheck disable=SC2086
  need_packages $packages_cuda
fi
use_ccache

build=${WAVEKV_BUILD_DIR:-build/release}
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=ON -DWAVEKV_BUILD_EXAMPLES=ON \
  -DWAVEKV_BUILD_BENCHMARKS=OFF -DWAVEKV_CUDA=$cuda
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
