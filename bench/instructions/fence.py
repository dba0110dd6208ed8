#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Counts the instructions of `attend` and sealing on a fixed input, and holds them to the counts on record.

    fence.py PROGRAM --compiler NAME   counts, compares with counts.json; exits with 1 when a count is above its margin
    fence.py PROGRAM --compiler NAME --update   counts and writes counts.json
    fence.py --self-test               feeds the comparison counts that must pass and counts that must not

A count may be MARGIN above the one on record. More than MARGIN below is only said, so that the fence is moved
down. Where compiler, C library, Highway, Eigen or valgrind are not those of the record, that is said and
OTHER_TOOLS_MARGIN holds. Callgrind's files stay beside the program: `callgrind_annotate FILE` says where a count comes from.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

MARGIN = 0.05
OTHER_TOOLS_MARGIN = 0.20
RECORD = pathlib.Path(__file__).with_name("counts.json")
UPDATE = "bash bench/instructions/run.sh --update"


class Failure(Exception):
    """The instructions could not be counted."""


def output_of(command):
    """What a command prints, or Failure with the end of what it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failure(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def macro(path, name):
    """The number a header defines, or "?"."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "?"
    found = re.search(rf"#\s*define\s+{name}\s+(\d+)", text)
    return found[1] if found else "?"


def used_tools(compiler):
    """Name -> version of everything beside this project that decides a count."""
    eigen = "/usr/include/eigen3/Eigen/src/Core/util/Macros.h"
    highway = "/usr/include/hwy/highway.h"
    if not os.path.exists(highway) or macro(highway, "HWY_MAJOR") == "?":
        highway = "/usr/include/hwy/base.h"
    return {
        "compiler": output_of([compiler, "--version"]).splitlines()[0],
        "c_library": " ".join(platform.libc_ver()),
        "eigen": ".".join(macro(eigen, f"EIGEN_{part}_VERSION") for part in ("WORLD", "MAJOR", "MINOR")),
        "highway": ".".join(macro(highway, f"HWY_{part}") for part in ("MAJOR", "MINOR", "PATCH")),
        "valgrind": output_of(["valgrind", "--version"]).strip(),
    }


def read_dump(text):
    """(name, instructions) of one of callgrind's files; None when no request of the program wrote it."""
    name = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.MULTILINE)
    if name is None:
        return None
    events = re.search(r"^events: (.*)$", text, re.MULTILINE)
    totals = re.search(r"^totals: (\d+)", text, re.MULTILINE)
    if events is None or events[1].split()[0] != "Ir" or totals is None:
        raise Failure(f"callgrind's file of {name[1]} has no total of Ir")
    return name[1], int(totals[1])


def count(program):
    """Name -> {"instructions": …, and what the step read}."""
    program = pathlib.Path(program).resolve()
    for old in program.parent.glob("callgrind.out*"):
        old.unlink()
    # Nothing of the caller's environment: its size alone moves the stack. Eigen's products stay on one thread.
    printed = output_of(
        ["env", "-i", "PATH=/usr/bin:/bin", "OMP_NUM_THREADS=1", "valgrind", "--tool=callgrind", "--quiet"]
        + ["--instr-atstart=no", f"--callgrind-out-file={program.parent / 'callgrind.out'}", str(program)]
    )
    counts = {}
    for path in program.parent.glob("callgrind.out*"):
        dump = read_dump(path.read_text(encoding="utf-8"))
        if dump is not None:
            counts[dump[0]] = {"instructions": dump[1]}
    if not counts:
        raise Failure("callgrind counted nothing")
    for line in printed.splitlines():
        name, *facts = line.split()
        counts[name].update(zip(facts[::2], map(int, facts[1::2])))
    return dict(sorted(counts.items()))


def compare(counts, tools, record, say=print):
    """Prints one line for each count; whether all of them hold."""
    margin = MARGIN
    changed = [name for name in tools if tools[name] != record["tools"].get(name)]
    for name in changed:
        say(f"other {name}: {tools[name]}; the counts on record are of {record['tools'].get(name, '?')}")
    if changed:
        margin = OTHER_TOOLS_MARGIN
        say(f"so the margin is {margin:.0%} instead of {MARGIN:.0%}")
    holds = True
    known = record["counts"]
    for name in sorted(counts.keys() | known.keys()):
        if name not in counts or name not in known:
            where = "counted" if name not in counts else "on record"
            say(f"{name:<24} FAILED: not {where}; {UPDATE}")
            holds = False
            continue
        found, expected = counts[name]["instructions"], known[name]["instructions"]
        change = found / expected - 1
        verdict = "ok"
        if found > expected * (1 + margin):
            verdict = f"FAILED: more than {margin:.0%} above the record"
            holds = False
        elif found < expected * (1 - margin):
            verdict = f"ok; more than {margin:.0%} below: move the fence down, {UPDATE}"
        say(f"{name:<24} {found:>14,} {change:>+8.2%}  {verdict}")
        for fact, value in counts[name].items():
            before = known[name].get(fact)
            if fact != "instructions" and value != before:
                say(f"{'':<24} {fact} {before} -> {value}: other work, not only other code")
    return holds


def self_test():
    """Raises AssertionError unless the comparison passes what it should and fails what it should."""
    tools = {"compiler": "g++ 1", "valgrind": "valgrind-1"}
    record = {"tools": tools, "counts": {"attend": {"instructions": 1000, "tokens_read": 7}}}

    def outcome(instructions, used=tools, name="attend", tokens=7):
        lines = []
        fact = {"instructions": instructions, "tokens_read": tokens}
        return compare({name: fact}, used, record, lines.append), "\n".join(lines)

    other = {**tools, "compiler": "g++ 2"}
    limit, wide_limit = round(1000 * (1 + MARGIN)), round(1000 * (1 + OTHER_TOOLS_MARGIN))
    cases = [
        ("as on record", outcome(1000), True, "ok"),
        ("at the margin", outcome(limit), True, "ok"),
        ("above the margin", outcome(limit + 1), False, "FAILED: more than"),
        ("twice as much", outcome(2000), False, "+100.00%"),
        ("below the margin", outcome(round(1000 * (1 - MARGIN)) - 1), True, "move the fence down"),
        ("other compiler, within its margin", outcome(wide_limit, other), True, "other compiler: g++ 2"),
        ("other compiler, above it", outcome(wide_limit + 1, other), False, "FAILED: more than"),
        ("other name", outcome(1000, name="seal"), False, "not counted"),
        ("nothing on record", outcome(1000, name="seal"), False, "not on record"),
        ("other work", outcome(1000, tokens=8), True, "tokens_read 7 -> 8"),
    ]
    for title, (holds, said), expected, part in cases:
        assert holds == expected, f"{title}: holds is {holds}, expected {expected}\n{said}"
        assert part in said, f"{title}: {part!r} is not in\n{said}"

    dump = "version: 1\n\ndesc: Trigger: Client Request: seal\n\nevents: Ir\n\n1 1 1\n\ntotals: 12345\n"
    assert read_dump(dump) == ("seal", 12345)
    assert read_dump(dump.replace("Client Request: seal", "Program termination")) is None
    try:
        read_dump(dump.replace("totals", "other"))
    except Failure:
        return
    raise AssertionError("a file without a total was read")


def write_record(counts, tools):
    """Writes counts.json whole or not at all."""
    text = json.dumps({"tools": tools, "counts": counts}, indent=2) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=RECORD.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, RECORD)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", help="wavekv_instructions")
    parser.add_argument("--compiler", help="that built the program")
    parser.add_argument("--update", action="store_true", help="write counts.json")
    parser.add_argument("--self-test", action="store_true", help="test the comparison, count nothing")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test()
        print("self-test of the fence: passed")
        return 0
    if arguments.program is None or arguments.compiler is None:
        parser.error("PROGRAM and --compiler are needed")
    if not RECORD.exists() and not arguments.update:
        raise Failure(f"there is no {RECORD}; {UPDATE}")
    tools = used_tools(arguments.compiler)
    counts = count(arguments.program)
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else None
    holds = compare(counts, tools, record) if record is not None else True
    if arguments.update:
        write_record(counts, tools)
        print(f"wrote {RECORD}")
        return 0
    print("fence:", "holds" if holds else f"FAILED; if the change is worth it: {UPDATE}")
    return 0 if holds else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"fence: {failure}")
