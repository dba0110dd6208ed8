#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/cuda/resources.sh [--build FOLDER] [--update]: what each kernel needs of a multiprocessor (registers, spills,
# stack, static shared memory), as ptxas said when it compiled it, beside resources.txt; see resources.py for when it
# fails. --build: a build folder in which target wavekv_cuda_compiled is built; else builds it in build/cuda-compiled.
# --update: writes resources.txt instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/cuda.sh

folder=""
arguments=()
while (($#)); do
  case $1 in
  --build)
    folder=${2:?--build needs a folder}
    shift
    ;;
  --update) arguments+=(--update) ;;
  *)
    sed -n '4,7s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done
if ! have_nvcc; then
  echo "bench/cuda/resources.sh needs nvcc, CUDA's compiler" >&2
  exit 2
fi

python3 -B bench/cuda/resources.py --self-test
build_compiled "$folder"
mapfile -t logs < <(find "$build/tests/cuda/compiled" -name '*.ptxas' | sort)
python3 -B bench/cuda/resources.py --nvcc "$(nvcc_release)" "${arguments[@]}" "${logs[@]}"
