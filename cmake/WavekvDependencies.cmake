# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# wavekv_require(<package> DEBIAN <what to install> [VERSION <v>] [ARGS <find_package arguments>])
# find_package whose failure is one line that names the Debian package. A macro, because what
# find_package sets must reach the caller.
macro(wavekv_require package)
  cmake_parse_arguments(wavekv_require_ "" "DEBIAN;VERSION" "ARGS" ${ARGN})
  find_package(${package} ${wavekv_require__VERSION} ${wavekv_require__ARGS} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR
      "wavekv needs ${package} ${wavekv_require__VERSION}: apt-get install ${wavekv_require__DEBIAN}")
  endif()
endmacro()
