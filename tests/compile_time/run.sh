#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash tests/compile_time/run.sh [compiler...]: prints how long a user's file takes to compile, for
# each compiler (default g++): the umbrella header alone, and one instantiated cache. Processor time,
# so that a busy machine does not show; aims, not limits, since machines differ: 3 s and 10 s.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

includes=(-isystem /usr/include/eigen3 -Iinclude)
object=$(mktemp)
trap 'rm -f "$object"' EXIT

seconds_of() { # seconds_of COMPILER SOURCE: the best of two
  local best= t
  for _ in 1 2; do
    t=$({ TIMEFORMAT='%U %S'; time "$1" -std=c++20 -O2 -march=native -fopenmp -DNDEBUG \
          -DHWY_IS_DEBUG_BUILD=0 "${includes[@]}" -c "$2" -o "$object"; } 2>&1)
    [[ $t =~ ^[0-9.]+\ [0-9.]+$ ]] || { echo "$t" >&2; return 1; }
    best=$(awk -v t="$t" -v best="$best" 'BEGIN {
      split(t, part); sum = part[1] + part[2]; print best == "" || sum < best ? sum : best }')
  done
  printf '%.1f' "$best"
}

for compiler in "${@:-g++}"; do
  umbrella=$(seconds_of "$compiler" tests/compile_time/umbrella.cpp)
  one_cache=$(seconds_of "$compiler" tests/compile_time/one_cache.cpp)
  printf '%-12s <wavekv/wavekv.hpp> alone %7s s (aim  3 s)\n' "$compiler" "$umbrella"
  printf '%-12s one instantiated cache    %7s s (aim 10 s)\n' "$compiler" "$one_cache"
done
