#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/peers/run.sh [--check] [--out DIR] [--contexts K...]: measures wavekv beside its peers on the same keys and
# cores, prints the tables, writes DIR/side_by_side.json (default bench/results; build/peers with --check) and draws the
# pictures there. --check: the short form, under 10 minutes once all is installed; prints each target beside what was
# measured and fails where one falls short. The first run installs the peers into build/peers (6 GB, some five minutes).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/packages.sh

check=0
out=""
arguments=()
while (($#)); do
  case $1 in
  --check) check=1 ;;
  --out)
    out=${2:?--out needs a directory}
    shift
    ;;
  --contexts)
    arguments+=(--contexts)
    while [[ ${2:-} =~ ^[0-9]+$ ]]; do
      arguments+=("$2")
      shift
    done
    ;;
  *)
    sed -n '4,7s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done
work=build/peers
venv=$work/venv
build=$work/cmake
if [[ -z $out ]]; then
  out=bench/results
  if ((check)); then out=$work; fi
fi
mkdir -p "$work" "$out"

say() { printf '%s\n' "$*" >&2; }

# --- what the run needs
# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_benches $packages_reference python3-dev g++ >&2
use_ccache

# install_peers: a virtual environment with what requirements.txt names, each alone, so that one that cannot be had is
# skipped; side_by_side.py then says so in its tables.
install_peers() {
  cmp -s bench/peers/requirements.txt "$venv/requirements.installed" && return
  say "--- installing the peers into $venv"
  local began=$SECONDS name python=/usr/bin/python3
  [[ -x $python ]] || python=python3
  "$python" -m venv --clear "$venv"
  while read -r name; do
    "$venv/bin/pip" install -q --disable-pip-version-check "$name" >&2 ||
      say "skipped: $name: pip could not install it (see above)"
  done < <(grep -v '^#' bench/peers/requirements.txt)
  "$venv/bin/python" -c 'import numpy, matplotlib' || return 1
  cp bench/peers/requirements.txt "$venv/requirements.installed"
  say "    installed in $((SECONDS - began)) s"
}

# build_ggml: its shared libraries in $work/ggml/lib. Fails where the package cannot be had or built.
build_ggml() {
  [[ -e $work/ggml/lib/libggml-cpu.so ]] && return
  say "--- building ggml out of llama-cpp-python's source package"
  local began=$SECONDS source
  rm -rf "$work/ggml"
  mkdir -p "$work/ggml"
  "$venv/bin/pip" download -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d "$work/ggml" llama-cpp-python >&2 || return 1
  tar -xf "$work"/ggml/llama_cpp_python-*.tar.gz -C "$work/ggml" || return 1
  source=$(echo "$PWD/$work"/ggml/llama_cpp_python-*/vendor/llama.cpp/ggml)
  cmake -S bench/peers/ggml -B "$work/ggml/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/$work/ggml/lib" -DGGML_SOURCE_DIR="$source" >"$work/ggml/log" 2>&1 &&
    cmake --build "$work/ggml/build" --target ggml-base ggml-cpu >>"$work/ggml/log" 2>&1 ||
    { tail -5 "$work/ggml/log" >&2; return 1; }
  say "    built in $((SECONDS - began)) s"
}

install_peers
if build_ggml; then
  export WAVEKV_GGML=$PWD/$work/ggml/lib
else
  say "skipped: ggml: the source package could not be had or built (see above)"
fi

say "--- building wavekv's part"
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_BENCHMARKS=ON >"$work/log"
targets=(wavekv_peer bound_accuracy)
if cmake --build "$build" --target help | grep -q '^wavekv_bench_generate:'; then targets+=(wavekv_bench_generate); fi
cmake --build "$build" --target "${targets[@]}" >>"$work/log" 2>&1 || { tail -30 "$work/log" >&2; exit 1; }

# --- what other programs measure
accuracy_arguments=(--tokens 32768 --questions 128)
generate_arguments=(--threads 1 2)
if ((check)); then
  accuracy_arguments=(--tokens 16384 --questions 64)
  generate_arguments+=(--short)
  arguments+=(--check)
fi
say "--- bounds' accuracy on captured and diffuse data (bound_accuracy)"
"$build/bin/bound_accuracy" "${accuracy_arguments[@]}" --temperatures 10 --indexes two_level --clusterers query_metric \
  --capture "$work/captured" --json "$work/bound_accuracy.json" >"$work/bound_accuracy.md"
rm -f "$work/generate.json"
if [[ -x $build/bin/wavekv_bench_generate ]]; then
  say "--- a random bf16 Llama of 1B parameters (wavekv_bench_generate)"
  "$build/bin/wavekv_bench_generate" "${generate_arguments[@]}" --json "$work/generate.json" >"$work/generate.log" ||
    say "skipped: wavekv_bench_generate failed"
else
  say "skipped: generate: this checkout has no wavekv_bench_generate"
fi

# --- the run itself. Idle OpenMP teams sleep: several peers' teams share the cores.
say "--- side by side"
OMP_WAIT_POLICY=passive "$venv/bin/python" bench/peers/side_by_side.py --library "$build/bench/libwavekv_peer.so" \
  --captured "$work/captured" --bound-accuracy "$work/bound_accuracy.json" --generate "$work/generate.json" \
  --out "$out/side_by_side.json" ${arguments[@]+"${arguments[@]}"}

"$venv/bin/python" bench/peers/report.py "$out/side_by_side.json" | tee "$out/side_by_side.md"
"$venv/bin/python" bench/plot.py --out "$out" "$out/side_by_side.json"
echo
status=0
"$venv/bin/python" bench/peers/targets.py "$out/side_by_side.json" | tee "$out/targets.md" || status=$?
if ((check)); then exit "$status"; fi
