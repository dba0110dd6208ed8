# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Copies PROJECT/ away, configures, builds and runs it; see CMakeLists.txt for the arguments.
cmake_minimum_required(VERSION 3.25)

function(must)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed (${result}): ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
file(COPY "${CMAKE_CURRENT_LIST_DIR}/${PROJECT}/" DESTINATION "${WORK_DIR}/source")

set(options -G "${GENERATOR}" "-DCMAKE_CXX_COMPILER=${COMPILER}")
if(PROJECT STREQUAL "outside_cuda")
  list(APPEND options "-DCMAKE_CUDA_COMPILER=${CUDA_COMPILER}")
endif()
if(WAY STREQUAL "package")
  must("${CMAKE_COMMAND}" --install "${WAVEKV_BINARY_DIR}" --prefix "${WORK_DIR}/prefix")
  list(APPEND options "-DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix" "-DWAVEKV_WANTED=${WAVEKV_VERSION}"
       -DCMAKE_BUILD_TYPE=Release)
else()
  # Debug: assertions of Highway must not ask for its library
  list(APPEND options -DCMAKE_BUILD_TYPE=Debug "-DWAVEKV_DIR=${WAVEKV_SOURCE_DIR}")
endif()
must("${CMAKE_COMMAND}" -S "${WORK_DIR}/source" -B "${WORK_DIR}/build" ${options})
must("${CMAKE_COMMAND}" --build "${WORK_DIR}/build")
must("${WORK_DIR}/build/engine")
