# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# shellcheck shell=bash
#
# Sourced by the scripts that build or run CUDA code: where the toolkit is, its disassembler, the card.

# Toolkits install themselves there, and not always into the PATH.
if ! command -v nvcc >/dev/null && [[ -x /usr/local/cuda/bin/nvcc ]]; then PATH=$PATH:/usr/local/cuda/bin; fi

# have_nvcc: whether CUDA code can be compiled here.
have_nvcc() { command -v "${CUDACXX:-nvcc}" >/dev/null; }

# nvcc_release: "13.0.88".
nvcc_release() { "${CUDACXX:-nvcc}" --version | sed -n 's/.*, V\([0-9.]*\)$/\1/p'; }

# have_disassembler VENV: puts cuobjdump and nvdisasm, which it calls, into the PATH: the toolkit's, or, where it came
# without them, those of the Python index in a virtual environment. Fails, and says why, where neither can be had.
have_disassembler() {
  local venv=$1 nvcc bin
  nvcc=$(command -v "${CUDACXX:-nvcc}") && PATH=$PATH:$(dirname "$nvcc")
  if command -v cuobjdump >/dev/null && command -v nvdisasm >/dev/null; then return 0; fi
  if ! cmp -s bench/cuda/requirements.txt "$venv/requirements.installed"; then
    if ! { python3 -m venv --clear "$venv" &&
      "$venv/bin/pip" install -q --no-cache-dir --disable-pip-version-check -r bench/cuda/requirements.txt; } >&2; then
      echo "no cuobjdump and nvdisasm: neither the CUDA toolkit has them nor could pip install them" >&2
      return 1
    fi
    cp bench/cuda/requirements.txt "$venv/requirements.installed"
  fi
  for bin in "$venv"/lib/python3*/site-packages/nvidia/*/bin; do
    if [[ -x $bin/cuobjdump && -x $bin/nvdisasm ]]; then
      PATH=$bin:$PATH
      return 0
    fi
  done
  echo "no cuobjdump and nvdisasm: the packages of bench/cuda/requirements.txt are not laid out as expected" >&2
  return 1
}

# build_compiled [FOLDER]: builds wavekv_cuda_compiled and sets `build` to the build folder: FOLDER, whose builder did it
# already, or build/cuda-compiled.
build_compiled() {
  build=${1-}
  [[ -z $build ]] || return 0
  build=build/cuda-compiled
  # Flags in full: neither NVCC_APPEND_FLAGS nor an older configuration may change a register.
  unset NVCC_APPEND_FLAGS NVCC_PREPEND_FLAGS
  cmake --preset release -B "$build" -DWAVEKV_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=80-real;90" \
    -DWAVEKV_BUILD_EXAMPLES=OFF -DWAVEKV_BUILD_BENCHMARKS=OFF >/dev/null
  cmake --build "$build" --target wavekv_cuda_compiled
}

# require_gpu SCRIPT: ends the script with one line and 2 unless there is a GPU. Sets card, capability ("9.0"; empty where
# nvidia-smi does not say) and driver.
require_gpu() {
  local first=${CUDA_VISIBLE_DEVICES:-0} found
  if command -v nvidia-smi >/dev/null; then
    found=$(nvidia-smi -i "${first%%,*}" --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>/dev/null |
      grep -E '^[^,]+, [0-9.]+, [0-9.]+$') || found=""
  elif compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
    found="unknown card, , unknown"
  else
    found=""
  fi
  if [[ -z $found ]]; then
    echo "$1 needs an NVIDIA GPU, and this machine shows none" >&2
    exit 2
  fi
  # shellcheck disable=SC2034 # for the caller
  IFS=, read -r card capability driver <<<"${found//, /,}"
}

# architecture: what to compile for: the card that is there, and nothing else.
architecture() {
  if [[ -n $capability ]]; then echo "${capability/./}-real"; else echo native; fi
}

# commit: of the checkout, with "+changes" where it is not clean; "unknown" without git.
commit() {
  local commit changes
  commit=$(git rev-parse --short=12 HEAD 2>/dev/null) || commit=unknown
  changes=$(git status --porcelain --untracked-files=no -- include tests bench 2>/dev/null) || changes=""
  echo "$commit${changes:++changes}"
}
