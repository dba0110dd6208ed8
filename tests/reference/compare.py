#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compare two folders of reference data: files must be equal byte for byte, numbers with a fraction in .json files to 1e-3.

Logits are computed by whatever kernels the machine's PyTorch picks, so their last digits differ between machines.
"""
import argparse
import json
import sys
from pathlib import Path

TOLERANCE = 1e-3


def differences(a, b, where):
    """Yield one line for each place where two JSON values differ."""
    if isinstance(a, float) or isinstance(b, float):
        if not (isinstance(a, (int, float)) and isinstance(b, (int, float)) and abs(a - b) <= TOLERANCE):
            yield f"{where}: {a} and {b}"
    elif type(a) is not type(b):
        yield f"{where}: {type(a).__name__} and {type(b).__name__}"
    elif isinstance(a, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differences(x, y, f"{where}[{i}]")
    elif a != b:
        yield f"{where}: {str(a)[:60]} and {str(b)[:60]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stored", type=Path)
    parser.add_argument("made", type=Path)
    args = parser.parse_args()
    names = sorted({p.relative_to(root) for root in (args.stored, args.made) for p in root.rglob("*") if p.is_file()})
    failures = []
    for name in names:
        stored, made = args.stored / name, args.made / name
        if not (stored.exists() and made.exists()):
            failures.append(f"{name}: only in {args.stored if stored.exists() else args.made}")
        elif stored.read_bytes() != made.read_bytes():
            if name.suffix == ".json":
                failures += list(differences(*(json.loads(p.read_text(encoding="utf-8")) for p in (stored, made)), str(name)))
            else:
                failures.append(f"{name}: bytes differ")
    print("\n".join(failures[:20] + [f"{args.stored}: {len(names)} files, {len(failures)} differences"]))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
