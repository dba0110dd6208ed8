# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# With WAVEKV_CUDA: the CUDA language and wavekv::cuda, which a .cu file that includes <wavekv/.../*.cuh> links. A file of
# its own because enable_language must be called outside a function.

# Real code for the A100's and the H100's families, PTX for what comes after.
set(wavekv_cuda_default_architectures FALSE)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90")
  set(wavekv_cuda_default_architectures TRUE)
endif()

# wavekv_compile_to_ptx(<target>): PTX alone, where no architectures were asked for. For programs of kernels that
# tests/cuda/compiled hands to ptxas anyway: nobody runs them but the scripts that build for the card that is there.
function(wavekv_compile_to_ptx target)
  if(wavekv_cuda_default_architectures)
    set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES 90-virtual)
  endif()
endfunction()

# The host half of a .cu file and the .cpp files it is linked with are better off with one compiler. Where nvcc does not
# take it (a g++ newer than it knows), or it is a clang, nvcc's own choice stands.
get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT CUDA IN_LIST languages AND NOT DEFINED CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX}
   AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(nvcc "${CMAKE_CUDA_COMPILER}")
  if(NOT nvcc)
    find_program(WAVEKV_NVCC NAMES "$ENV{CUDACXX}" nvcc)
    mark_as_advanced(WAVEKV_NVCC)
    set(nvcc "${WAVEKV_NVCC}")
  endif()
  set(probe "${PROJECT_BINARY_DIR}/CMakeFiles/host_compiler.cu")
  file(WRITE "${probe}" "#include <cstddef>\n")
  execute_process(COMMAND "${nvcc}" -ccbin "${CMAKE_CXX_COMPILER}" -E "${probe}"
    RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
  if(result EQUAL 0)
    set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
  endif()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
wavekv_require(Cccl DEBIAN "none: it is a part of the CUDA toolkit")

add_library(wavekv::cuda ALIAS wavekv_cuda)
