#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash tests/run_cuda.sh [--no-sanitizers] [--built FOLDER]: what only a GPU can test. Sets up, builds for the card that is
# there, runs all tests of tests/cuda/device, then compute-sanitizer's four tools over their small cases (doctest's
# *small*), and prints a summary, which is also kept in the build folder. Exits with 2, and one line, where there is no GPU;
# with 1 where something failed or could not be run. --built: runs the programs of a build folder as they are.
# WAVEKV_BUILD_DIR names another build folder than build/cuda.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/packages.sh
source .ci/cuda.sh

sanitizers=(memcheck racecheck initcheck synccheck)
built=""
while (($#)); do
  case $1 in
  --no-sanitizers) sanitizers=() ;;
  --built)
    built=${2:?--built needs a folder}
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

require_gpu tests/run_cuda.sh
if [[ -n $built ]]; then
  build=$built
else
  if ! have_nvcc; then
    echo "tests/run_cuda.sh needs nvcc, CUDA's compiler" >&2
    exit 2
  fi
  # shellcheck disable=SC2086 # lists of words
  need_packages $packages_library $packages_tests || echo "going on: CMake names what is missing" >&2
  use_ccache
  build=${WAVEKV_BUILD_DIR:-build/cuda}
  cmake --preset release -B "$build" -DWAVEKV_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$(architecture)" \
    -DWAVEKV_BUILD_TESTS=ON -DWAVEKV_BUILD_EXAMPLES=OFF -DWAVEKV_BUILD_BENCHMARKS=OFF
  cmake --build "$build" --target wavekv_cuda_tests
fi

log=$(mktemp)
summary=()
failed=0
trap 'rm -f "$log"' EXIT
note() { # note VERDICT WHAT: a line of the summary; any verdict but "passed" fails the run
  summary+=("$(printf '%-8s %s' "$1" "$2")")
  [[ $1 == passed ]] || failed=1
}

# --- the tests
shopt -s nullglob
programs=("$build"/bin/cuda/wavekv_test_cuda_device_*)
((${#programs[@]})) || note FAILED "there is no test program in $build/bin/cuda"
for program in ${programs[@]+"${programs[@]}"}; do
  name=${program##*/wavekv_test_cuda_device_}
  echo "--- $name"
  began=$SECONDS
  verdict=passed
  timeout 900 "$program" 2>&1 | tee "$log" || verdict=FAILED
  cases=$(sed -n 's/.*\[doctest\] test cases: *\([^|]*[0-9]\).*/\1/p' "$log")
  note "$verdict" "$name: ${cases:-no} cases, $((SECONDS - began)) s"
done

# --- the sanitizers: on the PATH, in the toolkit, or from the Python index
find_sanitizer() {
  local bin venv=$build/cuda-sanitizer
  for bin in "$(command -v compute-sanitizer)" /usr/local/cuda/bin/compute-sanitizer \
    /usr/local/cuda/compute-sanitizer/compute-sanitizer; do
    if [[ -x $bin ]]; then sanitizer=$bin && return; fi
  done
  if [[ ! -d $venv ]]; then
    { python3 -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check 'nvidia-cuda-sanitizer-api==13.*'; } >&2 ||
      { rm -rf "$venv" && return 1; }
  fi
  for bin in "$venv"/lib/python3*/site-packages/nvidia/*/compute-sanitizer/compute-sanitizer; do
    chmod +x "$bin"
    sanitizer=$bin && return
  done
  return 1
}
if ((${#sanitizers[@]})) && ! find_sanitizer; then
  note "NOT RUN" "compute-sanitizer: neither the CUDA toolkit has it nor could pip install it"
  sanitizers=()
fi
for tool in ${sanitizers[@]+"${sanitizers[@]}"}; do
  arguments=()
  if [[ $tool == memcheck ]]; then arguments=(--leak-check full); fi
  for program in ${programs[@]+"${programs[@]}"}; do
    name=${program##*/wavekv_test_cuda_device_}
    echo "--- $tool: $name"
    began=$SECONDS
    verdict=passed
    timeout 900 "$sanitizer" --tool "$tool" --error-exitcode 9 ${arguments[@]+"${arguments[@]}"} \
      "$program" --test-case='*small*' 2>&1 | tee "$log" || verdict=FAILED
    if grep -q 'Device not supported' "$log"; then verdict="NOT RUN"; fi
    cases=$(sed -n 's/.*\[doctest\] test cases: *\([0-9]*\) *|.*/\1/p' "$log")
    # A sanitizer that has seen no call of CUDA says that the program failed.
    if [[ $verdict != "NOT RUN" && $cases == 0 ]]; then
      summary+=("$(printf '%-8s %s' - "$tool: $name has no small case")")
    else
      note "$verdict" "$tool: $name: ${cases:-no} small cases, $((SECONDS - began)) s"
    fi
  done
done

{
  echo
  echo "card:    $card (driver $driver)"
  echo "commit:  $(commit)"
  printf '%s\n' "${summary[@]}"
  if ((failed)); then echo "tests/run_cuda.sh: FAILED"; else echo "tests/run_cuda.sh: all passed"; fi
} | tee "$build/cuda_tests.txt"
exit "$failed"
