# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Finds the headers of CCCL (Thrust, CUB, libcu++) in the CUDA toolkit and defines Cccl::headers. nvcc finds them by
# itself; a host compiler does not, and since CUDA 13 they lie in a folder of their own. After find_package(CUDAToolkit).
find_path(Cccl_INCLUDE_DIR thrust/version.h HINTS ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES cccl)
mark_as_advanced(Cccl_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Cccl REQUIRED_VARS Cccl_INCLUDE_DIR)

if(Cccl_FOUND AND NOT TARGET Cccl::headers)
  add_library(Cccl::headers INTERFACE IMPORTED)
  set_target_properties(Cccl::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${Cccl_INCLUDE_DIR}")
endif()
