#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash tests/run.sh [arguments for ctest]: sets up, builds and runs all tests.
# WAVEKV_BUILD_DIR names another build folder than build/release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/packages.sh

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_tests
use_ccache

build=${WAVEKV_BUILD_DIR:-build/release}
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=ON -DWAVEKV_BUILD_EXAMPLES=ON \
  -DWAVEKV_BUILD_BENCHMARKS=OFF
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
