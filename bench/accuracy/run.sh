#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/accuracy/run.sh [--check] [--lengths N,N,...] [--out DIR]: every rule over a sweep of its budget, on keys, values and
# queries of the example model and of the diffuse generator, and how often verified_bound keeps its promise: tables, two pictures, and
# whether what must hold does. Results in DIR (default build/accuracy); one that was cut short goes on there. --check: short
# contexts; exit status 1 where a number does not hold. WAVEKV_BUILD_DIR names another build folder than build/bench.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/packages.sh

check=0
lengths=8192,32768,131072
questions=64
out=build/accuracy
while (($#)); do
  case $1 in
  --check)
    check=1
    lengths=8192,32768
    out=build/accuracy-check
    ;;
  --lengths)
    lengths=${2:?--lengths needs numbers of tokens}
    shift
    ;;
  --out)
    out=${2:?--out needs a directory}
    shift
    ;;
  *)
    sed -n '4,8s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_benches $packages_hnswlib $packages_pictures
use_ccache

build=${WAVEKV_BUILD_DIR:-build/bench}
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_BENCHMARKS=ON
cmake --build "$build" --target wavekv_rule_sweep
mkdir -p "$out"
python3 -B bench/accuracy/report.py --self-test
"$build/bin/wavekv_rule_sweep" --lengths "$lengths" --questions "$questions" --out "$out/sweep.jsonl"
arguments=(--pictures "$out")
((check)) && arguments+=(--check)
/usr/bin/python3 -B bench/accuracy/report.py "$out/sweep.jsonl" "${arguments[@]}" | tee "$out/rules.md"
