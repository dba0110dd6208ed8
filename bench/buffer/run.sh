#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/buffer/run.sh [--check] [--out DIR]: measures a cache with two tiers beside one that keeps everything in memory,
# on decode steps of the example's model, and Belady's optimum beside the eviction policies; prints the tables, writes JSON
# into DIR (default bench/results; build/buffer with --check). --check: the short form; fails where a number that must hold
# does not. Files of some GB go to build/buffer, which should be on the disk that is to be measured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/packages.sh

check=0
out=""
while (($#)); do
  case $1 in
  --check) check=1 ;;
  --out)
    out=${2:?--out needs a directory}
    shift
    ;;
  *)
    sed -n '4,7s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done
work=$PWD/build/buffer
build=${WAVEKV_BUILD_DIR:-$work/cmake}
if [[ -z $out ]]; then
  out=bench/results
  if ((check)); then out=$work; fi
fi
mkdir -p "$work" "$out"

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_benches $packages_io_uring python3 >&2
use_ccache
echo "--- building" >&2
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_BENCHMARKS=ON >"$work/log"
cmake --build "$build" --target wavekv_decode wavekv_memory wavekv_replay >>"$work/log" 2>&1 ||
  { tail -30 "$work/log" >&2; exit 1; }

decode=(--steps 256 --warm-up 256)
if ((check)); then decode=(--steps 128 --warm-up 256 --budgets 0.1); fi
echo "--- decoding" >&2
"$build/bin/wavekv_decode" "${decode[@]}" --work "$work" --json "$out/buffer_decode.json"
echo "--- Belady's optimum" >&2
"$build/bin/wavekv_replay" "$work/decode.trace" --json "$out/buffer_replay.json" >"$work/replay.md"
echo "--- memory" >&2
"$build/bin/wavekv_memory" --work "$work" --json "$out/buffer_memory.json"
echo >&2
status=0
python3 bench/buffer/report.py --decode "$out/buffer_decode.json" --replay "$out/buffer_replay.json" \
  --memory "$out/buffer_memory.json" | tee "$out/buffer.md" || status=$?
if ((check)); then exit "$status"; fi
