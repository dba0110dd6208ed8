#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/instructions/run.sh [--update]: builds the fixed work for one fixed target, counts its instructions
# with callgrind and compares them with counts.json (see fence.py). --update: writes counts.json instead.
# WAVEKV_BUILD_DIR names another build folder than build/instructions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/packages.sh

case "${1-}" in
"" | --update) ;;
*)
  sed -n '4,6s/^# //p' "$0" >&2
  [[ $1 == --help || $1 == -h ]] && exit 0
  exit 2
  ;;
esac
if [[ $(uname -m) != x86_64 ]]; then
  echo "the counts on record are of x86-64; this is $(uname -m)" >&2
  exit 1
fi

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_benches $packages_instructions
use_ccache

python3 bench/instructions/fence.py --self-test

# Flags are given in full: neither CXXFLAGS nor an older configuration may change a count.
build=${WAVEKV_BUILD_DIR:-build/instructions}
cmake -G Ninja -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=g++-12 -DCMAKE_CXX_FLAGS= \
  -DCMAKE_CXX_FLAGS_RELEASE="-O3 -DNDEBUG" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_EXAMPLES=OFF \
  -DWAVEKV_BUILD_BENCHMARKS=ON -DWAVEKV_NATIVE=OFF
cmake --build "$build" --target wavekv_instructions
python3 bench/instructions/fence.py "$build/bin/wavekv_instructions" --compiler g++-12 "$@"
