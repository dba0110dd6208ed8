# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Finds the header of xxHash and defines XxHash::headers. wavekv inlines it; nothing is linked.
find_path(XxHash_INCLUDE_DIR xxhash.h)
mark_as_advanced(XxHash_INCLUDE_DIR)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(XxHash REQUIRED_VARS XxHash_INCLUDE_DIR)

if(XxHash_FOUND AND NOT TARGET XxHash::headers)
  add_library(XxHash::headers INTERFACE IMPORTED)
  set_target_properties(XxHash::headers PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${XxHash_INCLUDE_DIR}")
endif()
