#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash tests/fuzz/run.sh [seconds] [--minimize] [name...]: builds the fuzzers in build/fuzz and runs
# each, or those named, for so long (60 s), beginning with a copy of the kept corpus. Fails on the
# first crash, undefined behaviour, leak, hang or large allocation, and says where its input lies.
# With --minimize the inputs that reach code which the kept corpus does not reach are added to it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/packages.sh

seconds=60
minimize=false
names=()
for argument in "$@"; do
  case $argument in
    --minimize) minimize=true ;;
    *[!0-9]*) names+=("$argument") ;;
    *) seconds=$argument ;;
  esac
done

# shellcheck disable=SC2086 # lists of words
need_packages clang-19 libclang-rt-19-dev llvm-19 libomp-19-dev $packages_library \
  $packages_examples $packages_tests
use_ccache

if ((${#names[@]} == 0)); then
  for harness in tests/fuzz/*_fuzz.cpp; do
    name=${harness##*/}
    names+=("${name%_fuzz.cpp}")
  done
fi

build=build/fuzz
cmake --preset clang -B "$build" -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 \
  -DWAVEKV_BUILD_FUZZERS=ON -DWAVEKV_BUILD_BENCHMARKS=OFF -DWAVEKV_INSTALL=OFF
cmake --build "$build" --target "${names[@]/#/wavekv_fuzz_}"

scratch=$(mktemp -d "$([[ -d /dev/shm ]] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/wavekv_fuzz.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/files" "$build/findings"
export TMPDIR=$scratch/files # where the harnesses put the files that they read
export OMP_NUM_THREADS=1
export UBSAN_OPTIONS=print_stacktrace=1
export ASAN_SYMBOLIZER_PATH=/usr/lib/llvm-19/bin/llvm-symbolizer

for name in "${names[@]}"; do
  fuzzer=$build/bin/wavekv_fuzz_$name
  kept=tests/fuzz/corpus/$name
  work=$scratch/$name
  cp -r "$kept" "$work"
  options=(-rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=2 -max_len=4096)
  [[ -f tests/fuzz/$name.dict ]] && options+=("-dict=tests/fuzz/$name.dict")
  echo "--- $name: $seconds s"
  if ! "$fuzzer" "${options[@]}" -max_total_time="$seconds" -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$build/findings/$name-" "$work" >"$scratch/log" 2>&1; then
    tail -n 100 "$scratch/log"
    echo "$name: finding; its input is in $build/findings/$name-*" >&2
    exit 1
  fi
  grep -E '(INITED|DONE) ' "$scratch/log"
  if $minimize; then
    "$fuzzer" "${options[@]}" -set_cover_merge=1 -use_counters=0 "$kept" "$work" 2>&1 | tail -n 1
  fi
done
