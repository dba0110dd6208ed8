#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash bench/accuracy/run.sh [--check] [--lengths N,N,...] [--out DIR]: every rule over a sweep of its budget, on keys, values and
# queries of the example model and of the diffuse generator, and how often verified_bound keeps its promise; then tasks that the example
# model answers by each rule and by full attention: tables, two pictures, and whether what must hold does. --check: short contexts;
# exit status 1 where a number does not hold.
# bash bench/accuracy/run.sh --model DIR [--tasks T,T,...] [--lengths N,N,...] [--rules R,R,...] [--cases N] [--template T] [--out DIR]:
# RULER's tasks answered by any checkpoint that the example transformer reads; --tasks without --model: tasks alone, the example model.
# Results in DIR (default build/accuracy, with -check or the model's name behind it); a run that was cut short goes on there, the same
# command again. WAVEKV_BUILD_DIR names another build folder than build/bench.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source .ci/packages.sh

check=0
model=""
tasks=""
lengths=""
out=""
options=() # for wavekv_tasks
while (($#)); do
  case $1 in
  --check) check=1 ;;
  --model | --tasks | --lengths | --out | --rules | --cases | --template)
    (($# > 1)) || { echo "$1 needs a value" >&2; exit 2; }
    case $1 in
    --model) model=$2 ;;
    --tasks) tasks=$2 ;;
    --lengths) lengths=$2 ;;
    --out) out=$2 ;;
    *) options+=("$1" "$2") ;;
    esac
    shift
    ;;
  *)
    sed -n '4,12s/^# //p' "$0" >&2
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
    ;;
  esac
  shift
done
if [[ -n $model && ! -f $model/config.json ]]; then
  echo "--model $model: no checkpoint (config.json, tokenizer.json, model.safetensors or its shards)" >&2
  exit 2
fi
tasks_alone=0
[[ -n $model || -n $tasks ]] && tasks_alone=1
if [[ -z $out ]]; then
  out=build/accuracy
  ((check)) && out+=-check
  [[ -n $model ]] && out+=-$(basename "$(realpath "$model")")
fi

# shellcheck disable=SC2086 # lists of words
need_packages $packages_library $packages_examples $packages_benches $packages_hnswlib $packages_pictures
use_ccache

build=${WAVEKV_BUILD_DIR:-build/bench}
cmake --preset release -B "$build" -DWAVEKV_BUILD_TESTS=OFF -DWAVEKV_BUILD_BENCHMARKS=ON
targets=(wavekv_tasks)
((tasks_alone)) || targets+=(wavekv_rule_sweep)
cmake --build "$build" --target "${targets[@]}"
mkdir -p "$out"
status=0

sweep() { # sweep LENGTHS
  python3 -B bench/accuracy/report.py --self-test
  "$build/bin/wavekv_rule_sweep" --lengths "$1" --questions 64 --out "$out/sweep.jsonl"
  local arguments=(--pictures "$out")
  ((check)) && arguments+=(--check)
  /usr/bin/python3 -B bench/accuracy/report.py "$out/sweep.jsonl" "${arguments[@]}" | tee "$out/rules.md" || status=1
}

ask() { # ask ARGUMENTS: of wavekv_tasks
  "$build/bin/wavekv_tasks" "$@" "${options[@]}" --out "$out/tasks.jsonl"
}

trace() { # trace ARGUMENTS: of wavekv_tasks; lists and traces are asked of the model that was taught them
  "$build/bin/wavekv_tasks" --model examples/models/needle_trace --tasks list,trace "$@" "${options[@]}" --out "$out/traces.jsonl"
}

if ((!tasks_alone)); then
  if ((check)); then sweep "${lengths:-8192,32768}"; else sweep "${lengths:-8192,32768,131072}"; fi
fi
python3 -B bench/accuracy/task_report.py --self-test
if ((tasks_alone)); then
  [[ -n $model ]] && options+=(--model "$model")
  [[ -n $tasks ]] && options+=(--tasks "$tasks")
  ask --lengths "${lengths:-4096,16384}"
elif ((check)); then
  ask --lengths 4096 --cases 40
  trace --lengths 4096 --cases 20
else
  ask --tasks many,near_miss --lengths 4096,16384,32768
  ask --tasks growing --lengths 4096,16384 # read once a rule
  ask --tasks single --lengths 4096        # read once a question
  trace --lengths 4096 # long answers
fi
python3 -B bench/accuracy/task_report.py "$out/tasks.jsonl" | tee "$out/tasks.md" || status=1
if ((!tasks_alone)); then
  python3 -B bench/accuracy/task_report.py "$out/traces.jsonl" | tee -a "$out/tasks.md" || status=1
fi
exit $status
