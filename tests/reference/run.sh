#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash tests/reference/run.sh: checks everything that needs Python. Makes the stored reference data again and compares it,
# compares the shipped models' golden.json with transformers, and trains a tiny model with examples/models/train_needle.py.
#
# Makes a virtual environment with requirements.txt in build/reference-venv (WAVEKV_VENV names another folder): a CPU build of
# torch where its index can be reached, else the one from PyPI with its CUDA libraries (2.9 GB to download).
# When wavekv_generate is built (WAVEKV_GENERATE names it), it must read the model just trained.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=${WAVEKV_VENV:-build/reference-venv}
generate=${WAVEKV_GENERATE:-build/release/bin/wavekv_generate}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1

if ! cmp -s tests/reference/requirements.txt "$venv/requirements.installed"; then
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [[ $(id -u) != 0 ]]; then
      echo "tests/reference/run.sh needs Python's venv module: sudo apt-get install python3-venv" >&2
      exit 1
    fi
    apt-get install -y -qq python3-venv
  fi
  began=$SECONDS
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install -q --no-cache-dir -r tests/reference/requirements.txt
  cp tests/reference/requirements.txt "$venv/requirements.installed"
  echo "virtual environment $venv: $((SECONDS - began)) s"
fi
python=$venv/bin/python

step() { # step NAME COMMAND...: runs it and says how long it took
  local name=$1 began=$SECONDS
  shift
  echo "--- $name"
  "$@"
  echo "    $name: $((SECONDS - began)) s"
}
step "random models" "$python" tests/reference/make_models.py --out "$work/models"
step "compare" "$python" tests/reference/compare.py tests/data/models "$work/models"
step "tokenizers" "$python" tests/reference/make_tokenizers.py --out "$work/tokenizers"
step "compare" "$python" tests/reference/compare.py tests/data/tokenizers "$work/tokenizers"
step "golden.json" "$python" tests/reference/check_needle.py
step "training, smoke run" "$python" examples/models/train_needle.py --smoke --out "$work/numbers"
step "training goes on, smoke run" "$python" examples/models/train_needle.py --smoke --init "$work/numbers" --questions all \
  --out "$work/smoke"
if [[ -x $generate ]]; then
  step "wavekv_generate reads the trained model" "$generate" --model "$work/smoke" --prompt "The magic number of" --max-tokens 8
fi
echo "tests/reference/run.sh: all passed"
