#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Holds the machine code of kernels to what sass.txt asks of it.

    sass.py FILE...      FILE is what `cuobjdump --dump-sass` wrote; exits with 1 when something does not hold
    sass.py --self-test  feeds it code that must pass and code that must not

A line of sass.txt is a pattern of kernels' names (see kernel_names.py), a pattern of instructions, and how many of them
each such kernel must have at least: `>= N`, or at most: `<= N`. Both patterns are regular expressions that match from the
start. It holds for every architecture the kernel was compiled for, or those named after `on`. A line whose kernels are not
there fails.
"""

import argparse
import pathlib
import re
import sys

import kernel_names

RULES = pathlib.Path(__file__).with_name("sass.txt")

# What is printed of each kernel: heading -> instructions.
COUNTED = {
    "LDG.128": r"LDG\.E\.(?:\w+\.)*128",
    "LDG": r"LDG",
    "LDGSTS.128": r"LDGSTS\.(?:\w+\.)*128",
    "STG.128": r"STG\.E\.(?:\w+\.)*128",
    "STG": r"STG",
    "LDS": r"LDS",
    "STS": r"STS",
    "HMMA": r"HMMA",
    "FFMA": r"FFMA",
    "MUFU": r"MUFU",
    "SHFL": r"SHFL",
    "BAR": r"BAR",
    "local": r"LDL|STL",
    "generic": r"(?:LD|ST|ATOM)\.E",
    "all": r"",
}


class Failure(Exception):
    """The code or the rules could not be read."""


def read_sass(text):
    """(short name, arch) -> list of instructions, predicates and operands left out."""
    code = {}
    arch = None
    name = None
    for line in text.splitlines():
        if found := re.match(r"\s*(?:arch = |code for )(sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            name = found[1]
            code[name, arch] = []
        elif name is not None and (
            found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)
        ):
            if found[1] != "NOP":  # padding
                code[name, arch].append(found[1])
    names = kernel_names.short_names([name for name, _ in code])
    return {
        (names[name].strip(), arch): lines for (name, arch), lines in code.items() if name in names
    }


def read_rules(text):
    """(kernel, instruction, comparison, number, architectures or None) of each line."""
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        found = re.fullmatch(r"(\S+)\s+(\S+)\s+(>=|<=)\s+(\d+)(?:\s+on\s+(.+))?", line)
        if found is None:
            raise Failure(f"{RULES.name}:{number}: {line!r}; expected: KERNEL INSTRUCTION >= N [on sm_90 …]")
        rules.append((found[1], found[2], found[3], int(found[4]), found[5].split() if found[5] else None))
    return rules


def count(instructions, pattern):
    """How many match from the start."""
    return sum(re.match(pattern, instruction) is not None for instruction in instructions)


def table(code):
    """What COUNTED counts, a line for each kernel."""
    width = max(len(name) for name, _ in code)
    lines = ["kernel".ljust(width) + "  arch   " + "  ".join(COUNTED)]
    for (name, arch), instructions in sorted(code.items()):
        cells = [str(count(instructions, pattern)).rjust(len(title)) for title, pattern in COUNTED.items()]
        lines.append(f"{name.ljust(width)}  {arch:<5}  " + "  ".join(cells))
    return "\n".join(lines)


def check(code, rules, say=print):
    """Prints what does not hold; whether all does."""
    holds = True
    for kernel, instruction, comparison, limit, architectures in rules:
        title = f"{kernel} {instruction} {comparison} {limit}"
        matching = [
            key
            for key in sorted(code)
            if re.match(kernel, key[0]) and (architectures is None or key[1] in architectures)
        ]
        if not matching:
            say(f"FAILED: {title}: no kernel has such a name")
            holds = False
        for key in matching:
            n = count(code[key], instruction)
            if n < limit if comparison == ">=" else n > limit:
                say(f"FAILED: {title}: {key[0]} for {key[1]} has {n}")
                holds = False
    return holds


def self_test():
    """Raises AssertionError unless code is read and the rules pass what they should and fail what they should."""
    kernel_names.self_test()
    mangled = "_ZN6wavekv6device10run_kernelINS_7testing13sample_kernelILb1EEEEEvT_"
    code = read_sass(
        f"""arch = sm_90
\tcode for sm_90
\t\tFunction : {mangled}
\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x00000a00ff017b82 */
                                                                     /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;  /* 0x0000000402047981 */
        /*0020*/                   LDG.E R8, [R2.64] ;               /* 0x0000000402047981 */
        /*0030*/              @P1  LDGSTS.E.BYPASS.128 [R5], [R2] ;  /* 0x0000000402047981 */
        /*0040*/                   NOP;                              /* 0x0000000000007918 */
\t\t..........

\t\tFunction : _ZN3cub11EmptyKernelIvEEvv
        /*0000*/                   EXIT ;                            /* 0x000000000000794d */
"""
    )
    assert code == {
        ("sample_kernel<true>", "sm_90"): ["LDC", "LDG.E.128.CONSTANT", "LDG.E", "LDGSTS.E.BYPASS.128"]
    }, code
    counts = dict(zip(["kernel", "arch", *COUNTED], table(code).splitlines()[1].split()))
    assert [counts[title] for title in ("LDG.128", "LDG", "LDGSTS.128", "STG", "all")] == list("13104"), counts
    cases = [
        (r"sample LDG\.E\.128 >= 1", True, ""),
        (r"sample.*<true> LDG\.E\.128 >= 2", False, "has 1"),
        (r"sample LDL|STL <= 0  # a comment", True, ""),
        (r"sample LDG <= 2", False, "has 3"),
        (r"sample LDG\.E\.128 >= 9 on sm_80 sm_90", False, "for sm_90 has 1"),
        (r"sample LDG\.E\.128 >= 1 on sm_80", False, "no kernel has such a name"),
        (r"decode LDG\.E\.128 >= 1", False, "no kernel has such a name"),
    ]
    for line, wanted, part in cases:
        lines = []
        holds = check(code, read_rules(line), lines.append)
        assert holds == wanted, f"{line}: holds is {holds}, expected {wanted}\n{lines}"
        assert part in "\n".join(lines), f"{line}: {part!r} is not in {lines}"
    try:
        read_rules("sample LDG > 1")
    except Failure:
        return
    raise AssertionError("a rule that is none was read")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="what cuobjdump --dump-sass wrote")
    parser.add_argument("--self-test", action="store_true", help="test the rules, read nothing")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test()
        return 0
    if not arguments.files:
        parser.error("FILE is needed")
    code = {}
    for file in arguments.files:
        code.update(read_sass(pathlib.Path(file).read_text(encoding="utf-8")))
    if not code:
        raise Failure("there is no kernel of the library in it")
    print(table(code))
    rules = read_rules(RULES.read_text(encoding="utf-8"))
    holds = check(code, rules)
    print(f"sass: {len(rules)} rules on {len(code)} kernels:", "all hold" if holds else "FAILED")
    return 0 if holds else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failure, OSError) as failure:
        sys.exit(f"sass: {failure}")
