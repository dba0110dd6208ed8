# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Finds the headers of hnswlib and defines Hnswlib::headers.
find_path(Hnswlib_INCLUDE_DIR hnswlib/hnswlib.h)
mark_as_advanced(Hnswlib_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Hnswlib REQUIRED_VARS Hnswlib_INCLUDE_DIR)

if(Hnswlib_FOUND AND NOT TARGET Hnswlib::headers)
  add_library(Hnswlib::headers INTERFACE IMPORTED)
  set_target_properties(Hnswlib::headers PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${Hnswlib_INCLUDE_DIR}")
endif()
