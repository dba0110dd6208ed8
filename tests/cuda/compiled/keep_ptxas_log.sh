#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# bash keep_ptxas_log.sh COMMAND...: a compiler launcher. Runs the command and moves what ptxas said of each kernel out of
# the build's output into <object>.ptxas, object being what follows -o.
set -uo pipefail

object=""
arguments=("$@")
for ((i = 0; i + 1 < $#; ++i)); do
  if [[ ${arguments[i]} == -o ]]; then object=${arguments[i + 1]}; fi
done
[[ -n $object ]] || exec "$@"

said=$(mktemp)
trap 'rm -f "$said"' EXIT
status=0
"$@" 2>"$said" || status=$?
of_ptxas='^ptxas info|^    [0-9]+ bytes stack frame'
rm -f "$object.ptxas"
if ((status == 0)); then grep -E "$of_ptxas" "$said" >"$object.ptxas"; fi
grep -Ev "$of_ptxas" "$said" >&2
exit "$status"
