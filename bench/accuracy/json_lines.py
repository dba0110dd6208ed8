# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Files of one JSON object a line, as json_lines.hpp writes them."""

import json
import pathlib


def read_rows(path, key=()):
    """The objects on record; a line that was cut short is none. Of objects that are alike in all of `key` the last one counts."""
    rows = {}
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows[tuple(row.get(name) for name in key) or number] = row
    return list(rows.values())
