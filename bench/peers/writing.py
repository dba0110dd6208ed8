# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What is not a decode step: building the index beside exact prefill, prefill beside PyTorch's, sealing while decoding."""

import time

import numpy as np

import torch_peer
from contender import Unavailable
from steps import pin
from wavekv_library import Cache
from workload import LLAMA, full_attention, make_diffuse, relative_errors

CHUNK = 256  # tokens of the prefill chunk that stands for a whole prefill


def _queries(workload, n):
    """Queries of n tokens, those that teach taken again and again."""
    times = -(-n // len(workload.teaching))
    return np.concatenate([workload.teaching] * times)[:n]


def build_against_prefill(library, cores, workload, n_threads):
    """Seconds to build the default index of a workload, and to attend it exactly at prefill.

    A prefill's cost grows with the square of the context, that of a chunk linearly with what lies before it: the
    whole is taken from chunks of 256 tokens at the middle of the context, median of three."""
    pin(cores, n_threads)
    library.set_threads(n_threads)
    context = workload.context
    cache = Cache(library, workload.shape)
    built = cache.load(workload, context // 2)
    queries = _queries(workload, CHUNK)
    out = np.empty_like(queries)
    seconds = []
    for _ in range(3):
        library.sweep()
        began = time.perf_counter()
        cache.prefill(workload.keys, workload.values, context // 2, queries, out)
        seconds.append(time.perf_counter() - began)
        cache.truncate(context // 2)
    built += cache.load_rest(workload, context // 2)
    kv, index, learnt = cache.memory()
    cache.close()
    return {
        "shape": str(workload.shape),
        "data": workload.data,
        "index": "<16,128>",
        "context": context,
        "threads": n_threads,
        "build_s": built,
        "prefill_s": float(np.median(seconds)) * context / CHUNK,
        "prefill_chunk": CHUNK,
        "kv_bytes": kv,
        "index_bytes": index,
        "learnt_bytes": learnt,
    }


def prefill_against_torch(library, cores, workload, n_threads, n_runs):
    """Exact causal prefill of a whole workload, bf16, in turns with PyTorch's; each PyTorch form is one row.
    Raises Unavailable."""
    pin(cores, n_threads)
    library.set_threads(n_threads)
    context = workload.context
    queries = _queries(workload, context)
    run_torch = torch_peer.causal_prefill(workload, queries, n_threads)
    out = np.empty_like(queries)

    def run_wavekv():
        cache = Cache(library, workload.shape)
        began = time.perf_counter()
        cache.prefill(workload.keys, workload.values, 0, queries, out)
        took = time.perf_counter() - began
        cache.close()
        return took

    def timed(form):
        began = time.perf_counter()
        run_torch(form)
        return time.perf_counter() - began

    runners = {
        ("wavekv", "prefill"): run_wavekv,
        ("PyTorch", "SDPA, is_causal, enable_gqa"): lambda: timed(False),
        ("PyTorch", "SDPA, is_causal, KV heads repeated"): lambda: timed(True),
    }
    seconds = {key: [] for key in runners}
    for _ in range(n_runs):
        for key, runner in runners.items():
            library.sweep()
            seconds[key].append(runner())
    _check_prefill(workload, queries, out)
    return [
        {
            "peer": peer,
            "form": form,
            "scalar": "bf16",
            "shape": str(workload.shape),
            "context": context,
            "threads": n_threads,
            "runs": n_runs,
            "median_s": float(np.median(times)),
            "min_s": min(times),
        }
        for (peer, form), times in seconds.items()
    ]


def _check_prefill(workload, queries, out):
    """A time counts only with the right answer: the last token's, head 0."""
    row = queries[-1:, 0] * np.float32(workload.scale)
    expected = full_attention(row, workload.keys[0], workload.values[0])
    error = relative_errors(out[-1:, 0], expected).max()
    if error > 1e-2:
        raise RuntimeError(f"wavekv's prefill is off by {error:.3g}")


def decode_through_sealing(library, cores, n_threads, n_layers, context, n_steps, progress):
    """Steps of a decoding model while its layers seal in turn: each appends a token to every layer and attends.

    All layers hold the same tokens, diffuse data; sealing cannot know."""
    pin(cores, len(cores))
    workload = make_diffuse(library, LLAMA, context + n_steps)
    library.set_threads(len(cores))
    cache = Cache(library, LLAMA, n_layers=n_layers)
    cache.load(workload, context)
    before = cache.segments()
    pin(cores, n_threads)
    library.set_threads(n_threads)
    seconds = np.empty(n_steps)
    for first in range(0, n_steps, 500):
        n = min(500, n_steps - first)
        seconds[first : first + n] = cache.decode(workload, context + first, n)
        progress(f"decoding: step {first + n} of {n_steps}")
    sealed = cache.segments() - before
    cache.close()
    return {
        "layers": n_layers,
        "shape": str(LLAMA),
        "context": context,
        "steps": n_steps,
        "threads": n_threads,
        "p50_ms": float(np.median(seconds)) * 1e3,
        "p99_ms": float(np.quantile(seconds, 0.99)) * 1e3,
        "max_ms": float(seconds.max()) * 1e3,
        "segments_sealed": int(sealed),
    }
