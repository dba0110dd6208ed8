#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash examples/run.sh [arguments for wavekv_generate]: sets up, builds the example and lets the
# shipped model find a needle in 32K tokens, through the wave index beside full attention.
# WAVEKV_BUILD_DIR names another build folder than build/release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/packages.sh

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples
use_ccache

build=${WAVEKV_BUILD_DIR:-build/release}
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_BENCHMARKS=OFF
cmake --build "$build" --target wavekv_generate

# The defaults are added only where the caller has not chosen.
arguments=("$@")
given() { # given OPTION...: whether one of them is among the caller's arguments
  local option argument
  for option in "$@"; do
    for argument in ${arguments[@]+"${arguments[@]}"}; do
      [[ $argument == "$option" || $argument == "$option="* ]] && return 0
    done
  done
  return 1
}
defaults=()
if ! given --help -h; then
  given --model || defaults+=(--model examples/models/needle)
  given --needle --prompt --prompt-file || defaults+=(--needle 32768)
  given --compare --cache || defaults+=(--compare)
fi
exec "$build/bin/wavekv_generate" ${defaults[@]+"${defaults[@]}"} "$@"
