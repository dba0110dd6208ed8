# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# cmake -DREADME=<file> -DEXAMPLES=<file;...> -P listings.cmake: what stands between the `// [listing]` lines of each
# example must stand in the README, word for word (but for the indentation of the whole).
file(READ "${README}" readme)
foreach(example IN LISTS EXAMPLES)
  file(READ "${example}" text)
  string(REGEX MATCH "\n( *)// \\[listing\\]\n(.*)\n *// \\[listing\\]\n" found "${text}")
  if(found STREQUAL "")
    message(FATAL_ERROR "${example} has no two lines `// [listing]`")
  endif()
  set(indent "${CMAKE_MATCH_1}")
  set(listing "\n${CMAKE_MATCH_2}\n")
  string(REPLACE "\n${indent}" "\n" listing "${listing}")
  string(FIND "${readme}" "```cpp${listing}```" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "${README} does not hold the listing of ${example}:${listing}")
  endif()
endforeach()
