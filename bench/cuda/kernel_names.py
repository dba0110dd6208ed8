# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Names of kernels, from the linker's form to one that fits a table."""

import re
import subprocess


def _demangled(names):
    """name -> demangled, by c++filt, which comes with every compiler."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(names, done.stdout.splitlines()))


def shortened(demangled):
    """The type of a kernel of the library, without namespaces; None for a kernel of another's, such as Thrust's."""
    found = re.match(r"void wavekv::device::run_kernel<(.*)>\(", demangled)
    if found is None:
        return None
    name = found[1]
    # The signature repeats the type: what was matched reaches into it when the type has parentheses.
    depth = 0
    for at, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if depth < 0:
            name = name[:at]
            break
    name = re.sub(r"\b(wavekv|device|testing|detail)::", "", name)
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\(([\w:]+)\)(-?\d)", r"\2", name)  # (mode)1, (unsigned char)1
    name = re.sub(r"\((?:unsigned|signed) \w+\)(-?\d)", r"\1", name)
    return re.sub(r"(\d)(?:ul|u|l)\b", r"\1", name)


def short_names(names):
    """name -> short name, for the library's own kernels."""
    names = list(dict.fromkeys(names))
    found = {name: shortened(demangled) for name, demangled in _demangled(names).items()}
    return {name: short for name, short in found.items() if short is not None}


def self_test():
    """Raises AssertionError unless names are shortened as they should be."""
    start = "void wavekv::device::run_kernel<"
    cases = {
        start + "wavekv::device::decode<wavekv::bf16, 128u, (wavekv::mode)1> >(wavekv::device::decode<wavekv::bf16, "
        "128u, (wavekv::mode)1>)": "decode<bf16, 128, 1>",
        start + "(anonymous namespace)::sample>((anonymous namespace)::sample)": "sample",
        start + "wavekv::testing::sample_kernel<true> >(wavekv::testing::sample_kernel<true>)": "sample_kernel<true>",
        "void cub::EmptyKernel<void>()": None,
    }
    for demangled, expected in cases.items():
        found = shortened(demangled)
        found = found.strip() if found else found
        assert found == expected, f"{demangled}: {found!r}, expected {expected!r}"
