#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/run.sh [--short] [--large] [--out DIR]: sets up, builds and runs all benches, one JSON file each
# into DIR (default build/bench-results), then draws them. --short: small sizes, for CI; its times mean little.
# --large: contexts of 512K and 1M too. WAVEKV_BUILD_DIR names another build folder than build/bench.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/packages.sh

short=0
out=build/bench-results
while (($#)); do
  case $1 in
  --short) short=1 ;;
  --large) export WAVEKV_BENCH_LARGE=1 ;;
  --out)
    out=${2:?--out needs a directory}
    shift
    ;;
  *)
    sed -n '4,6s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_benches
use_ccache

build=${WAVEKV_BUILD_DIR:-build/bench}
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_BENCHMARKS=ON
cmake --build "$build"
mkdir -p "$out"

bench_arguments=()
accuracy_arguments=()
generate_arguments=()
if ((short)); then
  export WAVEKV_BENCH_SHORT=1
  bench_arguments=(--benchmark_min_time=0.01)
  accuracy_arguments=(--tokens 4096 --questions 16 --temperatures 10)
  generate_arguments=(--short)
fi

for bench in "$build"/bin/wavekv_bench_*; do
  name=${bench##*/wavekv_bench_}
  [[ $name == generate ]] && continue # makes 2.5 GB; below
  echo "--- $name"
  "$bench" ${bench_arguments[@]+"${bench_arguments[@]}"} \
    --benchmark_out="$out/$name.json" --benchmark_out_format=json
done
echo "--- bound_accuracy"
"$build/bin/bound_accuracy" ${accuracy_arguments[@]+"${accuracy_arguments[@]}"} \
  --json "$out/bound_accuracy.json" | tee "$out/bound_accuracy.md"
echo "--- generate"
"$build/bin/wavekv_bench_generate" ${generate_arguments[@]+"${generate_arguments[@]}"} \
  --json "$out/generate.json" | tee "$out/generate.md"

echo "--- results in $out"
for python in python3 /usr/bin/python3; do
  if "$python" -c 'import matplotlib' 2>/dev/null; then
    "$python" bench/plot.py --out "$out" "$out"/*.json
    exit 0
  fi
done
echo "no plots: matplotlib is missing (apt-get install python3-matplotlib)"
