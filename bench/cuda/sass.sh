#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/cuda/sass.sh [--build FOLDER]: disassembles every kernel, counts the instructions that decide its speed, and
# holds them to sass.txt (see sass.py). --build: a build folder in which target wavekv_cuda_compiled is built; else builds
# it in build/cuda-compiled. Exits with 77, ctest's "skipped", where no disassembler can be had; with 1 if WAVEKV_SASS_REQUIRED is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/cuda.sh

folder=""
if [[ ${1-} == --build ]]; then
  folder=${2:?--build needs a folder}
  shift 2
fi
if (($#)); then
  sed -n '4,6s/^# //p' "$0" >&2
  [[ $1 == --help || $1 == -h ]] && exit 0
  exit 2
fi
if ! have_nvcc; then
  echo "bench/cuda/sass.sh needs nvcc, CUDA's compiler" >&2
  exit 2
fi

python3 -B bench/cuda/sass.py --self-test
build_compiled "$folder"
if ! have_disassembler "$build/cuda-tools"; then
  [[ -z ${WAVEKV_SASS_REQUIRED-} ]] || exit 1
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
find "$build/tests/cuda/compiled/CMakeFiles/wavekv_cuda_kernels.dir" -name '*.o' | sort | while read -r object; do
  cuobjdump --dump-sass "$object" >>"$work/sass"
done
python3 -B bench/cuda/sass.py "$work/sass"
