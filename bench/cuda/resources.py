#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Holds what each kernel needs of a multiprocessor to what is on record.

    resources.py --nvcc RELEASE LOG...            compares with resources.txt; exits with 1 when something does not hold
    resources.py --nvcc RELEASE LOG... --update   writes resources.txt
    resources.py --self-test                      feeds the comparison what must pass and what must not

A LOG is what `ptxas -v` said (tests/cuda/compiled keeps one beside each object). A kernel fails when

  - it spills more bytes, or has a larger stack, than on record: registers that went to memory
  - its registers differ from the record by more than 8, in either direction; a saving moves the record too
  - it is not on record, or is on record and not there

Architectures that this build leaves out are only said. Where nvcc is of another release than the record's, registers are only said.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile

import kernel_names

REGISTERS_MARGIN = 8
RECORD = pathlib.Path(__file__).with_name("resources.txt")
UPDATE = "bash bench/cuda/resources.sh --update"
COLUMNS = ("registers", "spill_stores", "spill_loads", "stack", "static_shared")


class Failure(Exception):
    """The logs or the record could not be read."""


def read_log(text):
    """(mangled name, arch) -> {column: number} of what ptxas said."""
    found = {}
    for entry in re.split(r"(?=ptxas info\s+: Compiling entry function)", text):
        head = re.match(r"ptxas info\s+: Compiling entry function '(\S+)' for '(\w+)'", entry)
        if head is None:
            continue
        # A function of its own that the kernel calls follows under its own name.
        own = re.search(
            rf"Function properties for {re.escape(head[1])}\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"(\d+) bytes spill loads",
            entry,
        )
        used = re.search(r": Used (\d+) registers(.*)", entry)
        if own is None or used is None:
            raise Failure(f"ptxas said nothing about {head[1]}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        found[head[1], head[2]] = {
            "registers": int(used[1]),
            "spill_stores": int(own[2]),
            "spill_loads": int(own[3]),
            "stack": int(own[1]),
            "static_shared": int(shared[1]) if shared else 0,
        }
    return found


def library_kernels(found):
    """(short name, arch) -> numbers; other people's kernels left out."""
    names = kernel_names.short_names([name for name, _ in found])
    return {
        (names[name].strip(), arch): numbers for (name, arch), numbers in sorted(found.items()) if name in names
    }


def table(kernels, release):
    """The text of a record."""
    width = max([len(name) for name, _ in kernels] + [len("kernel")])
    lines = [
        "# What each kernel needs of a multiprocessor; spills, stack and shared memory in bytes.",
        f"# nvcc {release}; written by {UPDATE}",
        "kernel".ljust(width) + "  arch   " + "  ".join(COLUMNS),
    ]
    for (name, arch), numbers in sorted(kernels.items()):
        cells = "  ".join(str(numbers[column]).rjust(len(column)) for column in COLUMNS)
        lines.append(f"{name.ljust(width)}  {arch:<5}  {cells}")
    return "\n".join(lines) + "\n"


def read_record(text):
    """(release, kernels) of a record."""
    release = re.search(r"^# nvcc (\S+);", text, re.MULTILINE)
    if release is None:
        raise Failure(f"{RECORD} does not say of which nvcc it is; {UPDATE}")
    kernels = {}
    for line in text.splitlines():
        found = re.fullmatch(r"(.+?)\s+(sm_\w+)((?:\s+\d+)+)", line)
        if found is not None:
            kernels[found[1], found[2]] = dict(zip(COLUMNS, map(int, found[3].split())))
    return release[1], kernels


def compare(kernels, release, record, say=print):
    """Prints what does not hold and what changed; whether all holds."""
    record_release, known = record
    same_release = release == record_release
    if not same_release:
        say(f"nvcc {release}; the record is of {record_release}: registers are only said")
    architectures = {arch for _, arch in kernels}
    for arch in sorted({arch for _, arch in known} - architectures):
        say(f"not compiled for {arch}, which is on record")
    known = {key: numbers for key, numbers in known.items() if key[1] in architectures}
    holds = True
    for key in sorted(kernels.keys() | known.keys()):
        title = f"{key[0]} for {key[1]}"
        if key not in kernels or key not in known:
            say(f"FAILED: {title}: {'not compiled' if key not in kernels else 'not on record'}; {UPDATE}")
            holds = False
            continue
        found, expected = kernels[key], known[key]
        for column in COLUMNS:
            if found[column] == expected[column]:
                continue
            difference = found[column] - expected[column]
            fails = column in ("spill_stores", "spill_loads", "stack") and difference > 0
            fails |= column == "registers" and same_release and abs(difference) > REGISTERS_MARGIN
            holds &= not fails
            say(f"{'FAILED' if fails else 'changed'}: {title}: {column} {expected[column]} -> {found[column]}")
    return holds


def self_test():
    """Raises AssertionError unless logs are read and the comparison passes what it should and fails what it should."""
    kernel_names.self_test()
    mangled = "_ZN6wavekv6device10run_kernelINS_7testing13sample_kernelILb1EEEEEvT_"
    other = "_ZN3cub11EmptyKernelIvEEvv"
    log = "ptxas info    : 0 bytes gmem\n" + "".join(
        f"ptxas info    : Compiling entry function '{name}' for 'sm_90'\n"
        f"ptxas info    : Function properties for {name}\n"
        "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 640 bytes smem, 376 bytes cmem[0]\n"
        for name in (mangled, other)
    )
    kernels = library_kernels(read_log(log))
    key = ("sample_kernel<true>", "sm_90")
    expected = dict(zip(COLUMNS, (40, 8, 12, 16, 640)))
    assert kernels == {key: expected}, kernels
    record = read_record(table(kernels, "13.0"))
    assert record == ("13.0", kernels), record

    def outcome(release="13.0", name=key, **changes):
        lines = []
        return compare({name: {**expected, **changes}}, release, record, lines.append), "\n".join(lines)

    cases = [
        ("as on record", outcome(), True, ""),
        ("registers in the margin", outcome(registers=48), True, "registers 40 -> 48"),
        ("more registers", outcome(registers=49), False, "FAILED"),
        ("fewer registers", outcome(registers=31), False, "FAILED"),
        ("more registers, other nvcc", outcome("13.1", registers=90), True, "changed"),
        ("a spill", outcome(spill_loads=16), False, "spill_loads 12 -> 16"),
        ("a spill, other nvcc", outcome("13.1", spill_stores=16), False, "FAILED"),
        ("fewer spills", outcome(spill_stores=0, spill_loads=0), True, "changed"),
        ("a stack", outcome(stack=32), False, "FAILED"),
        ("more shared memory", outcome(static_shared=1024), True, "changed"),
        ("other name", outcome(name=("decode", "sm_90")), False, "not compiled"),
        ("new", outcome(name=("decode", "sm_90")), False, "not on record"),
        ("new architecture", outcome(name=("sample_kernel<true>", "sm_100")), False, "not compiled for sm_90, which"),
    ]
    for title, (holds, said), wanted, part in cases:
        assert holds == wanted, f"{title}: holds is {holds}, expected {wanted}\n{said}"
        assert part in said, f"{title}: {part!r} is not in\n{said}"
    try:
        read_log(log.replace("Used", "Had"))
    except Failure:
        return
    raise AssertionError("a log without registers was read")


def write_record(text):
    """Writes resources.txt whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=RECORD.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, RECORD)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="*", help="what ptxas -v said")
    parser.add_argument("--nvcc", help="release of the compiler")
    parser.add_argument("--update", action="store_true", help="write resources.txt")
    parser.add_argument("--self-test", action="store_true", help="test the comparison, read nothing")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test()
        return 0
    if not arguments.logs or arguments.nvcc is None:
        parser.error("LOG and --nvcc are needed")
    found = {}
    for log in arguments.logs:
        found.update(read_log(pathlib.Path(log).read_text(encoding="utf-8")))
    kernels = library_kernels(found)
    if not kernels:
        raise Failure("the logs name no kernel of the library")
    text = table(kernels, arguments.nvcc)
    print(text, end="")
    if arguments.update:
        write_record(text)
        print(f"wrote {RECORD}")
        return 0
    if not RECORD.exists():
        raise Failure(f"there is no {RECORD}; {UPDATE}")
    holds = compare(kernels, arguments.nvcc, read_record(RECORD.read_text(encoding="utf-8")))
    print("resources:", "as on record" if holds else f"FAILED; if the change is worth it: {UPDATE}")
    return 0 if holds else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"resources: {failure}")
