# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Where and with what a run was made."""

import datetime
import os
import platform
import subprocess


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _flags():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("flags"):
                known = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
                return [flag for flag in known if flag in line.split()]
    return []


def _commit(folder):
    def git(*arguments):
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "include", "bench", "examples")
    return commit + ("+changes" if changed else "") if commit else "unknown"


def describe(folder, compiler):
    """Machine, compiler, commit and date, for the results file."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": _flags(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "compiler": compiler,
        "commit": _commit(folder),
        "date": datetime.date.today().isoformat(),
    }
