# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Names that results files hold, for those who write them and those who read them. Needs no package."""

K = 1024
LIMIT = "limit"  # peer of the rows that say what reading all K and V takes
DEFAULT_INDEX = "<16,128>"
