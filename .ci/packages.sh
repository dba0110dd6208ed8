# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# shellcheck shell=bash
#
# Sourced by the run scripts: what each needs from Debian, and how to get it.

packages_library="cmake ninja-build libeigen3-dev libhwy-dev libxxhash-dev"
packages_examples="nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev"
packages_io_uring="liburing-dev" # for wavekv::io_uring, which is left out without it
packages_hnswlib="libhnswlib-dev" # for wavekv::hnswlib, likewise
packages_emulated_device="libboost-context-dev libthrust-dev libcub-dev" # the CUDA backend, on the CPU
packages_tests="doctest-dev $packages_io_uring $packages_hnswlib $packages_emulated_device"
packages_cuda="python3 python3-venv" # beside the CUDA toolkit, which Debian does not have
packages_benches="libbenchmark-dev"
packages_pictures="python3 python3-matplotlib"
packages_instructions="g++-12 python3 valgrind"
packages_reference="python3-venv"
# llvm-19 has the symbolizer that names the frames of a leak (tests/leaks.supp).
packages_clang="g++-12 clang-19 clang-tidy-19 libclang-rt-19-dev libomp-19-dev llvm-19"

# need_packages NAME...: installs the missing ones when root; else prints the one line that does and
# fails. Where there is no dpkg it leaves the question to CMake, whose messages name the package.
need_packages() {
  command -v dpkg-query >/dev/null || return 0
  local missing=() name
  for name in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] ||
      missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    echo "missing packages; run:  sudo apt-get install -y ${missing[*]}" >&2
    return 1
  fi
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q </dev/null
  apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
}

# use_ccache: compiles through ccache where it is installed.
use_ccache() {
  if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_CUDA_COMPILER_LAUNCHER=ccache; fi
}
