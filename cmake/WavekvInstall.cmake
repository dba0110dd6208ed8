# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Installs the headers and the package that `find_package(wavekv 0.1)` finds; `find_package(wavekv 0.1 COMPONENTS cuda)`
# gives wavekv::cuda too, for which the CUDA toolkit must be there.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(wavekv_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/wavekv") # share: nothing here is compiled

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/wavekv"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(TARGETS wavekv EXPORT wavekvTargets)
install(EXPORT wavekvTargets NAMESPACE wavekv:: DESTINATION "${wavekv_package_dir}")
if(TARGET wavekv_io_uring) # a file of its own: who has no liburing does not read it
  install(TARGETS wavekv_io_uring EXPORT wavekvIoUringTargets)
  install(EXPORT wavekvIoUringTargets NAMESPACE wavekv:: DESTINATION "${wavekv_package_dir}")
endif()
if(TARGET wavekv_hnswlib)
  install(TARGETS wavekv_hnswlib EXPORT wavekvHnswlibTargets)
  install(EXPORT wavekvHnswlibTargets NAMESPACE wavekv:: DESTINATION "${wavekv_package_dir}")
endif()
install(TARGETS wavekv_cuda EXPORT wavekvCudaTargets) # likewise: only component cuda reads it
install(EXPORT wavekvCudaTargets NAMESPACE wavekv:: DESTINATION "${wavekv_package_dir}")

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/wavekvConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/wavekvConfig.cmake" INSTALL_DESTINATION "${wavekv_package_dir}")
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/wavekvConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  "${PROJECT_BINARY_DIR}/wavekvConfig.cmake"
  "${PROJECT_BINARY_DIR}/wavekvConfigVersion.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindCccl.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindHighwayHeaders.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindHnswlib.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindLiburing.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindXxHash.cmake"
  DESTINATION "${wavekv_package_dir}")
