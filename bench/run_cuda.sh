#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/run_cuda.sh [--short] [--no-torch] [--built FOLDER] [--out FILE]: what only a GPU can measure. Sets up, builds
# for the card that is there, runs all benches of bench/cuda and PyTorch's attention beside them, and writes one JSON
# file with card, driver and commit (default bench/results/cuda_<card>.json). Exits with 2, and one line, where there is no
# GPU. --short: small sizes, for a look. --built: runs the programs of a build folder as they are. The first run installs
# PyTorch into build/cuda-torch unless python3 has it with CUDA (WAVEKV_TORCH_PYTHON names another Python that has).
# WAVEKV_BUILD_DIR names another build folder than build/cuda.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/packages.sh
source .ci/cuda.sh

short=()
torch=1
built=""
out=""
while (($#)); do
  case $1 in
  --short) short=(--short) ;;
  --no-torch) torch=0 ;;
  --built)
    built=${2:?--built needs a folder}
    shift
    ;;
  --out)
    out=${2:?--out needs a file}
    shift
    ;;
  *)
    sed -n '4,9s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done

require_gpu bench/run_cuda.sh
if [[ -n $built ]]; then
  build=$built
else
  if ! have_nvcc; then
    echo "bench/run_cuda.sh needs nvcc, CUDA's compiler" >&2
    exit 2
  fi
  # shellcheck disable=SC2086 # lists of words
  need_packages $packages_library || echo "going on: CMake names what is missing" >&2
  use_ccache
  build=${WAVEKV_BUILD_DIR:-build/cuda}
  # Without the tests, whose libraries a bench does not need.
  cmake --preset release -B "$build" -DWAVEKV_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$(architecture)" \
    -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_EXAMPLES=OFF -DWAVEKV_BUILD_BENCHMARKS=OFF
  cmake --build "$build" --target wavekv_cuda_benches
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# find_torch: sets python to one whose PyTorch has CUDA.
find_torch() {
  local venv=build/cuda-torch
  for python in ${WAVEKV_TORCH_PYTHON:+"$WAVEKV_TORCH_PYTHON"} python3 "$venv/bin/python"; do
    "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && return
  done
  echo "--- installing PyTorch into $venv"
  python3 -m venv --clear "$venv" &&
    "$venv/bin/pip" install -q --no-cache-dir --disable-pip-version-check torch numpy || return 1
  python=$venv/bin/python
  "$python" -c 'import torch; assert torch.cuda.is_available(), "this PyTorch sees no GPU"'
}

shopt -s nullglob
for program in "$build"/bin/cuda/wavekv_bench_cuda_*; do
  name=${program##*/wavekv_bench_cuda_}
  echo "--- $name"
  if ! "$program" ${short[@]+"${short[@]}"} --json "$work/$name.json"; then
    echo "FAILED: $name" >&2
    failed=1
  fi
done
if ((torch)); then
  echo "--- PyTorch"
  if find_torch; then
    "$python" bench/cuda/torch_peer.py ${short[@]+"${short[@]}"} --json "$work/torch.json" || failed=1
  else
    echo "skipped: PyTorch could not be installed" >&2
    failed=1
  fi
fi

if [[ -z $out ]]; then
  slug=$(tr '[:upper:]' '[:lower:]' <<<"${card#NVIDIA }" | tr -cs 'a-z0-9\n' _)
  out=bench/results/cuda_$slug.json
fi
python3 - "$out" "$card" "$driver" "$(commit)" "$work"/*.json <<'PYTHON'
import datetime, json, pathlib, sys

out, card, driver, commit, *files = sys.argv[1:]
result = {"card": card, "driver": driver, "commit": commit, "date": datetime.date.today().isoformat()}
result["measured"] = {pathlib.Path(file).stem: json.loads(pathlib.Path(file).read_text()) for file in files}
text = json.dumps(result, indent=1) + "\n"
temporary = pathlib.Path(out + ".new")
temporary.parent.mkdir(parents=True, exist_ok=True)
temporary.write_text(text)
temporary.replace(out)
PYTHON
echo "card:    $card (driver $driver)"
echo "commit:  $(commit)"
echo "results: $out"
python3 bench/cuda/report.py "$out"
if ((failed)); then echo "bench/run_cuda.sh: not everything was measured, see above"; fi
exit "$failed"
