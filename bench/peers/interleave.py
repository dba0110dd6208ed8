# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Runs contenders in turn, so that whatever else the machine does falls on all of them alike."""

import time

import numpy as np

from words import LIMIT
from workload import relative_errors


def interleave(library, workload, contenders, n_runs, progress=lambda text: None):
    """Times every contender n_runs times, cold; one round runs each once, every round starts with another one.

    Returns rows (dict), the first that of the limit: all K and V in bf16 at the sequential read measured in every
    round. The caches are swept before each run; run i asks probe i of the workload."""
    expected = workload.expected()
    for contender in contenders:  # warm-up: pages, teams, code made on first use
        contender.run(len(workload.probes) - 1)
    seconds = [[] for _ in contenders]
    errors = [[] for _ in contenders]
    bandwidths = []
    for i in range(n_runs):
        progress(f"run {i + 1} of {n_runs}")
        probe = i % len(workload.probes)
        library.sweep()
        bandwidths.append(library.read_bandwidth())
        for k in range(len(contenders)):
            at = (k + i) % len(contenders)
            library.sweep()
            began = time.perf_counter()
            contenders[at].run(probe)
            seconds[at].append(time.perf_counter() - began)
            errors[at].append(relative_errors(contenders[at].output(), expected[probe]))
    rows = [_limit_row(workload, bandwidths)]
    for contender, times, off in zip(contenders, seconds, errors):
        rows.append(
            {
                "peer": contender.peer,
                "form": contender.form,
                "scalar": contender.scalar,
                **_times(times, contender.bytes_read()),
                "error_p50": float(np.median(off)),
                "error_p95": float(np.quantile(off, 0.95)),
                **contender.extra(),
            }
        )
    return rows


def _times(seconds, n_bytes):
    median = float(np.median(seconds))
    return {
        "runs": len(seconds),
        "median_ms": median * 1e3,
        "min_ms": min(seconds) * 1e3,
        "bytes_read": n_bytes,
        "gb_s": n_bytes / median * 1e-9,
    }


def _limit_row(workload, bandwidths):
    n_bytes = workload.kv_bytes("bf16")
    seconds = [n_bytes / bandwidth for bandwidth in bandwidths]
    return {
        "peer": LIMIT,
        "form": "all K and V at the machine's sequential read",
        "scalar": "bf16",
        **_times(seconds, n_bytes),
    }
