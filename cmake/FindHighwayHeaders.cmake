# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Finds the headers of Highway and defines Highway::headers. wavekv uses static dispatch, which
# links nothing; the library target hwy::hwy would be a needless run-time dependency.
#
# HWY_IS_DEBUG_BUILD=0: debug and sanitizer builds would otherwise call hwy::Abort, which lives in
# the library.
find_path(HighwayHeaders_INCLUDE_DIR hwy/highway.h)
mark_as_advanced(HighwayHeaders_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(HighwayHeaders REQUIRED_VARS HighwayHeaders_INCLUDE_DIR)

if(HighwayHeaders_FOUND AND NOT TARGET Highway::headers)
  add_library(Highway::headers INTERFACE IMPORTED)
  set_target_properties(Highway::headers PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${HighwayHeaders_INCLUDE_DIR}"
    INTERFACE_COMPILE_DEFINITIONS "HWY_IS_DEBUG_BUILD=0")
endif()
