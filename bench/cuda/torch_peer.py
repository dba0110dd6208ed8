#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""PyTorch's attention of one decode step, on a GPU: what wavekv is measured against there.

    torch_peer.py [--short] [--json FILE]     measures and prints a table
    torch_peer.py --device cpu                goes through the same motions with tiny shapes, on the CPU

One layer of a model with 32 query heads, 8 KV heads and 128 dimensions in bf16; one new token for each sequence of a
batch; all sequences of a batch have the same context. scaled_dot_product_attention with the backend named, in two forms:

    enable_gqa   query [batch, 32, 1, 128], KV [batch, 8, context, 128]: as most people write it
    folded       query [batch * 8, 1, 4, 128], KV [batch * 8, 1, context, 128]: a group's query heads are rows of one
                 attention over their KV head, which reads KV once however the backend treats groups

A step is recorded as a CUDA graph and replayed, so that Python's and the launches' time is not counted. Where KV would fit
into the L2 cache, the graph goes through several layers, as a model does, until they no longer do; the time is that of one
layer, the median of the replays. What a backend refuses, and what does not fit into memory, is said instead of a number.

Beside it, causal attention of a whole prompt of one sequence (rows with "prefill"), which the index's build is measured
against.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

N_QUERY_HEADS = 32
N_KV_HEADS = 8
DIM = 128
GROUP_SIZE = N_QUERY_HEADS // N_KV_HEADS
BYTES_PER_TOKEN = 2 * N_KV_HEADS * DIM * 2  # K and V, bf16

CONTEXTS = [2**i * 1024 for i in range(3, 11)]  # 8K … 1M
BATCHES = [1, 2, 4, 8, 16, 32, 64]
SHORT_CONTEXTS = [8192, 32768, 131072, 1048576]
SHORT_BATCHES = [1, 8, 64]

PROMPTS = [8192, 32768, 131072]
SHORT_PROMPTS = [8192]

MIN_LAYERS = 4  # of a graph: the time between two replays is divided by it
MAX_LAYERS = 64
L2_MULTIPLE = 4  # bytes of all layers of a graph, in sizes of the L2 cache, at least
MEMORY_SHARE = 0.85  # of the free memory that K and V may take
SECONDS_PER_ROW = 0.4
MIN_REPLAYS, MAX_REPLAYS = 20, 200


def enable_gqa(query, keys, values):
    """As most people write it; keys and values [batch, KV head, token, dim]."""
    return scaled_dot_product_attention(query, keys, values, enable_gqa=True)


def folded(query, keys, values):
    """The query heads of a group as rows of one attention over their KV head."""
    batch, _, context, _ = keys.shape
    return scaled_dot_product_attention(
        query.view(batch * N_KV_HEADS, 1, GROUP_SIZE, DIM),
        keys.view(batch * N_KV_HEADS, 1, context, DIM),
        values.view(batch * N_KV_HEADS, 1, context, DIM),
    ).view(batch, N_QUERY_HEADS, 1, DIM)


FORMS = {"enable_gqa": enable_gqa, "folded": folded}


class Gpu:
    """Memory, graphs and events of the current CUDA device."""

    backends = {
        "FLASH_ATTENTION": SDPBackend.FLASH_ATTENTION,
        "CUDNN_ATTENTION": SDPBackend.CUDNN_ATTENTION,
    }

    def __init__(self):
        self.device = torch.device("cuda")
        properties = torch.cuda.get_device_properties(self.device)
        self.l2_bytes = getattr(properties, "L2_cache_size", 50 << 20)

    def facts(self):
        """Name -> value, for the results file."""
        return {
            "card": torch.cuda.get_device_name(self.device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def available_bytes(self):
        """What K and V may take."""
        return int(torch.cuda.mem_get_info(self.device)[0] * MEMORY_SHARE)

    def seconds(self, step, n_steps):
        """Seconds of each replay of a graph of n_steps calls step(i)."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a backend may choose its kernel, and take memory, in its first calls
            for i in range(3):
                step(i)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(n_steps):
                step(i)

        def replay():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3

        once = min(replay() for _ in range(3))
        times = [replay() for _ in range(n_replays(once))]
        graph.reset()
        return times


class Cpu:
    """Stands in for a GPU, so that this program can be tried without one; its times mean nothing."""

    backends = {
        "MATH": SDPBackend.MATH,
        "FLASH_ATTENTION": SDPBackend.FLASH_ATTENTION,
        "CUDNN_ATTENTION": SDPBackend.CUDNN_ATTENTION,
    }
    l2_bytes = 1 << 20

    def __init__(self):
        self.device = torch.device("cpu")

    def facts(self):
        """Name -> value, for the results file."""
        return {"card": "none"}

    def available_bytes(self):
        """Little, so that some shapes do not fit."""
        return 48 << 20

    def seconds(self, step, n_steps):
        """Seconds of n_steps calls, a few times."""
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            for i in range(n_steps):
                step(i)
            times.append(time.perf_counter() - begin)
        return times


def n_replays(seconds):
    """How many replays of so many seconds are measured."""
    return min(MAX_REPLAYS, max(MIN_REPLAYS, math.ceil(SECONDS_PER_ROW / max(seconds, 1e-6))))


def random_memory(n_bytes, device):
    """So many bytes of normally distributed bf16, made piece by piece."""
    memory = torch.empty(n_bytes // 2, dtype=torch.bfloat16, device=device)
    for part in memory.split(1 << 28):
        part.normal_()
    return memory


def layers_of(memory, batch, context, l2_bytes):
    """[(keys, values)] for the layers of a graph, all inside memory; empty when not even one fits."""
    n_elements = batch * N_KV_HEADS * context * DIM
    fitting = memory.numel() // (2 * n_elements)
    wanted = math.ceil(L2_MULTIPLE * l2_bytes / (4 * n_elements))
    shape = (batch, N_KV_HEADS, context, DIM)
    return [
        tuple(memory[at * n_elements : (at + 1) * n_elements].view(shape) for at in (2 * layer, 2 * layer + 1))
        for layer in range(min(fitting, max(1, wanted), MAX_LAYERS))
    ]


def first_line(error):
    """What an exception says, shortened."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:160]


def relative_error(found, expected):
    """Of the output, in the Euclidean norm."""
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm())


def reference(query, keys, values):
    """Full attention in float32, spelled out."""
    batch = query.shape[0]
    rows = query.float().view(batch, N_KV_HEADS, GROUP_SIZE, DIM) * DIM**-0.5
    weights = torch.softmax(rows @ keys.float().transpose(-1, -2), -1)
    return (weights @ values.float()).view(batch, N_QUERY_HEADS, 1, DIM)


@torch.inference_mode()
def measure(machine, contexts, batches, say=print):
    """One dictionary for each form, backend, context and batch."""
    torch.manual_seed(7)
    memory = random_memory(machine.available_bytes() // 2 * 2, machine.device)
    rows = []
    for context in contexts:
        for batch in batches:
            layers = layers_of(memory, batch, context, machine.l2_bytes)
            query = torch.randn(batch, N_QUERY_HEADS, 1, DIM, device=machine.device).to(torch.bfloat16)
            kv_bytes = batch * context * BYTES_PER_TOKEN
            for form_name, form in FORMS.items():
                for backend_name, backend in machine.backends.items():
                    row = {"form": form_name, "backend": backend_name, "context": context, "batch": batch}
                    rows.append(row)
                    if not layers:
                        row["skipped"] = f"{kv_bytes / 1e9:.1f} GB of KV do not fit"
                    else:
                        row.update(measure_one(machine, form, backend, query, layers, kv_bytes))
                    say(line(row))
    return rows


def measure_one(machine, form, backend, query, layers, kv_bytes):
    """What is measured of one form and backend: a time, or why there is none."""
    n_steps = max(len(layers), MIN_LAYERS)

    def step(i):
        return form(query, *layers[i % len(layers)])

    reasons = []
    try:
        with sdpa_kernel([backend]), warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")  # a backend that refuses warns of each reason before it raises
            answer = step(0)
            times = [seconds / n_steps for seconds in machine.seconds(step, n_steps)]
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        return {"refused": "; ".join(map(first_line, [error, *(reason.message for reason in reasons)]))}
    times.sort()
    median = statistics.median(times)
    found = {
        "us": round(median * 1e6, 3),
        "us_p10": round(times[len(times) // 10] * 1e6, 3),
        "us_p90": round(times[len(times) * 9 // 10] * 1e6, 3),
        "replays": len(times),
        "layers": len(layers),
        "kv_gb_per_s": round(kv_bytes / median / 1e9, 1),
    }
    if kv_bytes <= 1 << 28:  # the reference takes several times as much memory
        found["relative_error"] = round(relative_error(answer, reference(query, *layers[0])), 5)
    return found


@torch.inference_mode()
def measure_prompts(machine, prompts, say=print):
    """One dictionary for each backend and prompt: causal attention of all its tokens, one layer."""
    rows = []
    for context in prompts:
        for backend_name, backend in machine.backends.items():
            row = {"form": "prefill", "backend": backend_name, "context": context, "batch": 1}
            rows.append(row)
            try:
                query, keys, values = (
                    torch.randn(1, heads, context, DIM, device=machine.device).to(torch.bfloat16)
                    for heads in (N_QUERY_HEADS, N_KV_HEADS, N_KV_HEADS)
                )
                with sdpa_kernel([backend]):
                    times = machine.seconds(
                        lambda _: scaled_dot_product_attention(
                            query, keys, values, is_causal=True, enable_gqa=True
                        ),
                        1,
                    )
            except RuntimeError as error:
                row["refused"] = first_line(error)
            else:
                row["us"] = round(statistics.median(times) * 1e6, 3)
                row["kv_gb_per_s"] = 0.0
            say(line(row))
    return rows


def line(row):
    """A row of the table that is printed."""
    what = f"{row['form']:<11} {row['backend']:<16} context {row['context']:>8} batch {row['batch']:>3}  "
    if "us" not in row:
        return what + "; ".join(f"{key}: {row[key]}" for key in ("refused", "skipped") if key in row)
    error = f"  error {row['relative_error']:.4f}" if "relative_error" in row else ""
    return what + f"{row['us']:>11.1f} us  {row['kv_gb_per_s']:>8.1f} GB/s{error}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="fewer contexts and batches")
    parser.add_argument("--contexts", type=int, nargs="+", help="tokens of a sequence")
    parser.add_argument("--batches", type=int, nargs="+", help="sequences of a step")
    parser.add_argument("--json", help="file to write the measurements to")
    arguments = parser.parse_args()

    contexts = arguments.contexts or (SHORT_CONTEXTS if arguments.short else CONTEXTS)
    batches = arguments.batches or (SHORT_BATCHES if arguments.short else BATCHES)
    if arguments.device == "cpu":
        machine = Cpu()
        contexts, batches = arguments.contexts or [64, 4096], arguments.batches or [1, 3, 8]
    elif torch.cuda.is_available():
        machine = Gpu()
    else:
        sys.exit("torch_peer.py needs a GPU, and PyTorch sees none; --device cpu tries the program itself")

    rows = measure(machine, contexts, batches)
    rows += measure_prompts(
        machine, [256] if arguments.device == "cpu" else SHORT_PROMPTS if arguments.short else PROMPTS
    )
    result = {
        "torch": torch.__version__,
        **machine.facts(),
        "shape": {"query_heads": N_QUERY_HEADS, "kv_heads": N_KV_HEADS, "dim": DIM, "scalar": "bf16"},
        "rows": rows,
    }
    wrong = [row for row in rows if row.get("relative_error", 0.0) > 0.02]
    for row in wrong:
        print("WRONG ANSWER:", line(row))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
