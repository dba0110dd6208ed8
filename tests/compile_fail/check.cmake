# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# cmake -DCOMPILER= -DSOURCE= -DINCLUDES= -DDEFINITIONS= -P check.cmake; see CMakeLists.txt.
cmake_minimum_required(VERSION 3.25)
set(flags -std=c++20 -fsyntax-only -w) # warnings are other tests' business
list(REMOVE_ITEM INCLUDES "")
foreach(directory IN LISTS INCLUDES)
  list(APPEND flags "-I${directory}")
endforeach()
list(TRANSFORM DEFINITIONS PREPEND -D)
list(APPEND flags ${DEFINITIONS})

file(STRINGS "${SOURCE}" expectations REGEX "^// expected-error: ")
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE}: no line '// expected-error: <regex>'")
endif()

execute_process(COMMAND "${COMPILER}" ${flags} -DWAVEKV_COMPILE_PASS "${SOURCE}"
  RESULT_VARIABLE result ERROR_VARIABLE output OUTPUT_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${SOURCE}: with the mistake mended it must compile, but:\n${output}")
endif()

execute_process(COMMAND "${COMPILER}" ${flags} "${SOURCE}"
  RESULT_VARIABLE result ERROR_VARIABLE output OUTPUT_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE}: must not compile, but did")
endif()
foreach(line IN LISTS expectations)
  string(REGEX REPLACE "^// expected-error: " "" expected "${line}")
  if(NOT output MATCHES "error: [^\n]*${expected}")
    message(FATAL_ERROR "${SOURCE}: no error matches\n  ${expected}\nin:\n${output}")
  endif()
endforeach()
message(STATUS "rejected with the expected message, and accepted once mended")
