# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

# wavekv_own_target(<target>...): what every program of this project is built with, and no user's
# program is: strict C++20, warnings (as errors unless WAVEKV_WERROR is off), -march=native unless
# WAVEKV_NATIVE is off.
function(wavekv_own_target)
  foreach(target IN LISTS ARGN)
    set_target_properties(${target} PROPERTIES
      CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF)
    target_compile_options(${target} PRIVATE
      -Wall -Wextra -Wpedantic -Wconversion -Wno-sign-conversion -Wshadow
      $<$<BOOL:${WAVEKV_WERROR}>:-Werror>
      $<$<BOOL:${WAVEKV_NATIVE}>:-march=native>)
  endforeach()
endfunction()
