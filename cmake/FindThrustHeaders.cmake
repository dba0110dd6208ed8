# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Finds the headers of Thrust for programs that have no GPU, from the CUDA toolkit or else the system's, and defines
# Thrust::sequential: its algorithms on the CPU, in order.
find_path(ThrustHeaders_INCLUDE_DIR thrust/sort.h
  HINTS ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda
  PATH_SUFFIXES include/cccl include)
mark_as_advanced(ThrustHeaders_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ThrustHeaders REQUIRED_VARS ThrustHeaders_INCLUDE_DIR)

if(ThrustHeaders_FOUND AND NOT TARGET Thrust::sequential)
  add_library(Thrust::sequential INTERFACE IMPORTED)
  set_target_properties(Thrust::sequential PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${ThrustHeaders_INCLUDE_DIR}"
    INTERFACE_COMPILE_DEFINITIONS
      "THRUST_HOST_SYSTEM=THRUST_HOST_SYSTEM_CPP;THRUST_DEVICE_SYSTEM=THRUST_DEVICE_SYSTEM_CPP")
endif()
