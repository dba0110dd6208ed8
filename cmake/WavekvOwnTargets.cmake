# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# wavekv_own_target(<target>... [ARCH <name>]): what every program of this project is built with, and
# no user's program is: strict C++20, warnings (as errors unless WAVEKV_WERROR is off), -march=native
# unless WAVEKV_NATIVE is off. With ARCH -march=<name> in any case.
function(wavekv_own_target)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "ARCH" "")
  set(march $<$<BOOL:${WAVEKV_NATIVE}>:-march=native>)
  if(arg_ARCH)
    set(march -march=${arg_ARCH})
  endif()
  foreach(target IN LISTS arg_UNPARSED_ARGUMENTS)
    set_target_properties(${target} PROPERTIES
      CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF)
    target_compile_options(${target} PRIVATE
      -Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Wshadow
      $<$<BOOL:${WAVEKV_WERROR}>:-Werror>
      ${march})
  endforeach()
endfunction()

# wavekv_own_cuda_target(<target>...): the same for what nvcc compiles.
function(wavekv_own_cuda_target)
  set(host_options -Wall -Wextra -Wconversion -Wno-sign-conversion -Wshadow) # -Wpedantic: nvcc's own output is not
  if(WAVEKV_WERROR)
    list(APPEND host_options -Werror)
  endif()
  if(WAVEKV_NATIVE)
    list(APPEND host_options -march=native)
  endif()
  list(JOIN host_options "," host_options)
  foreach(target IN LISTS ARGN)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo> # profilers and sanitizers name source lines; costs nothing at run time
      $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${host_options}>
      $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${WAVEKV_WERROR}>>:-Werror=all-warnings>)
  endforeach()
endfunction()
