#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The side-by-side run: measures wavekv and its peers on the same keys, values and queries, and writes one JSON file.

run.sh builds what this needs and calls it; report.py, targets.py and ../plot.py read what it writes."""

import argparse
import json
import os
import pathlib
import sys
import time

import faiss_peer
import ggml_peer
import hnswlib_peer
import machine
import onnxruntime_peer
import openvino_peer
import rules
import torch_peer
import writing
from contender import Unavailable
from steps import StepMeasurement
from wavekv_library import LEVELS, Library, WavekvProvider
from words import DEFAULT_INDEX, K
from workload import LLAMA, SMALL_HEADS, load_captured, make_diffuse, mass_curve

PEERS = {
    "PyTorch": torch_peer,
    "onnxruntime": onnxruntime_peer,
    "OpenVINO": openvino_peer,
    "ggml": ggml_peer,
    "faiss": faiss_peer,
    "hnswlib": hnswlib_peer,
}


class Log:
    """Progress on stderr; passing lines overwrite each other on a terminal and are left out elsewhere."""

    def __init__(self):
        self._began, self._passing = time.monotonic(), False

    def __call__(self, text, passing=False):
        if passing and not sys.stderr.isatty():
            return
        stamp = f"[{time.monotonic() - self._began:6.0f} s] "
        start = "\r\033[K" if self._passing else ""
        print(start + stamp + text, end="" if passing else "\n", file=sys.stderr, flush=True)
        self._passing = passing


def dense_providers():
    """One maker for each peer and format; the fastest forms first."""
    yield "PyTorch bf16", lambda: torch_peer.TorchProvider("bf16")
    yield "PyTorch f32", lambda: torch_peer.TorchProvider("f32")
    for scalar in ("f32", "f16"):
        yield f"onnxruntime {scalar}", lambda scalar=scalar: onnxruntime_peer.OnnxruntimeProvider(scalar)
    yield "OpenVINO f16", openvino_peer.OpenvinoProvider
    for scalar in ("f16", "q8_0"):
        for outside in (False, True):
            yield (
                f"ggml {scalar}" + (", llama.cpp's layout" if outside else ""),
                lambda scalar=scalar, outside=outside: ggml_peer.GgmlProvider(scalar, outside),
            )


def providers(library, steps, indexes, rules=None):
    """wavekv's default index, every dense peer that can be had, wavekv's other indexes."""
    more = {} if rules is None else {"rules": rules}
    made = [WavekvProvider(library, DEFAULT_INDEX, **more)]
    for name, make in dense_providers():
        try:
            made.append(make())
        except Unavailable as error:
            if not any(known["what"] == name for known in steps.skipped):
                steps.skip(name, "everywhere", str(error))
    made += [WavekvProvider(library, index, **more) for index in indexes if index != DEFAULT_INDEX]
    return made


class Run:
    """All measurements of one run, in the order of what they need in memory."""

    def __init__(self, library, arguments):
        self.library, self.arguments, self.log = library, arguments, Log()
        self.cores = sorted(os.sched_getaffinity(0))[:2]
        self.threads = (1, 2) if len(self.cores) > 1 else (1,)
        near, far_behind_form = (32 * K, 1.5) if arguments.check else (128 * K, 3)
        self.steps = StepMeasurement(
            library, self.cores, arguments.runs, self.log, near, far_behind_form
        )
        self.results = {
            "machine": machine.describe(pathlib.Path(__file__).parent, library.compiler()),
            "peers": {},
            "check": arguments.check,
            "curves": [],
            "build": [],
            "prefill": [],
            "decode": [],
            "clustering": [],
            "graph": [],
            "rules": [],
        }
        for name, module in PEERS.items():
            try:
                self.results["peers"][name] = module.version()
            except Unavailable as error:
                self.steps.skip(name, "everywhere", str(error))
        if len(self.cores) < 2:
            self.steps.skip("two threads", "everywhere", "this process may use one core only")

    def captured_workloads(self):
        """The layers that bound_accuracy --capture left, if any."""
        prefix = self.arguments.captured
        if prefix is None:
            self.steps.skip("captured data", "everywhere", "no --captured files were given")
            return []
        layers = json.loads(pathlib.Path(f"{prefix}.json").read_text(encoding="utf-8"))
        return [load_captured(prefix, layer) for layer in range(len(layers))]

    def measure_steps(self, workload, indexes=tuple(LEVELS)):
        self.steps.measure(workload, providers(self.library, self.steps, indexes), self.threads)

    def note_curve(self, workload):
        """Prints and keeps how far a workload's attention spreads."""
        curve = mass_curve(workload)
        self.results["curves"].append(
            {"data": workload.data, "shape": str(workload.shape), "context": workload.context,
             "tokens": {str(share): counts for share, counts in curve.items()}}
        )
        for share, counts in curve.items():
            self.log(
                f"{workload.name}: {100 * share:g} % of a query's mass lies on {min(counts)} to {max(counts)} tokens "
                f"({100 * min(counts) / workload.context:.2g} to {100 * max(counts) / workload.context:.2g} %) by head"
            )

    def small_measurements(self, captured):
        """Clustering, prefill, building, graph index, other rules' accuracy."""
        short = self.arguments.check
        diffuse = make_diffuse(self.library, LLAMA, 8 * K)
        self.log("=== clustering beside faiss")
        writing.pin(self.cores, 1)
        self.library.set_threads(1)
        self.results["clustering"] = faiss_peer.compare(
            self.library, faiss_peer.data_sets([diffuse, *captured]), self.arguments.runs
        )
        self.log("=== prefill of 8K beside PyTorch")
        for n_threads in self.threads:
            try:
                self.results["prefill"] += writing.prefill_against_torch(
                    self.library, self.cores, diffuse, n_threads, 1 if short else 3
                )
            except Unavailable as error:
                self.steps.skip("PyTorch prefill", f"{n_threads} threads", str(error))
        contexts = [context for context in self.arguments.plan[0][1] if context <= 512 * K]
        for context in [32 * K, 128 * K] if short else contexts:
            workload = make_diffuse(self.library, LLAMA, context)
            all_threads = context <= (32 * K if short else 128 * K)
            for n_threads in self.threads if all_threads else self.threads[-1:]:
                self.log(f"=== building the index of {context} tokens, {n_threads} threads")
                self.results["build"].append(
                    writing.build_against_prefill(self.library, self.cores, workload, n_threads)
                )
            n_keys = min(context, 128 * K)
            if context == n_keys and not (short and context > 32 * K):
                self._graph(workload, n_keys)
        self.log("=== accuracy of other methods' rules")
        for workload in [make_diffuse(self.library, LLAMA, 32 * K), *captured]:
            self.note_curve(workload)
            if not short:
                self.results["rules"] += rules.accuracy(workload)

    def _graph(self, workload, n_keys):
        self.log(f"=== hnswlib, {n_keys} keys of one KV head")
        writing.pin(self.cores, len(self.cores))
        try:
            self.results["graph"].append(hnswlib_peer.measure(workload, n_keys, len(self.cores)))
        except Unavailable as error:
            self.steps.skip("hnswlib", f"{n_keys} keys", str(error))

    def decode(self):
        """Steps through sealing."""
        layers, context = self.arguments.decode_layers, 2 * K if self.arguments.check else 8 * K
        self.log(f"=== {self.arguments.decode_steps} decode steps of {layers} layers from {context} tokens")
        self.results["decode"].append(
            writing.decode_through_sealing(
                self.library,
                self.cores,
                len(self.cores),
                layers,
                context,
                self.arguments.decode_steps,
                lambda text: self.log(text, passing=True),
            )
        )

    def everything(self):
        """Measures in turn; saved after every part, so that a run that is cut off leaves what it has."""
        captured = self.captured_workloads()
        self.small_measurements(captured)
        self.save()
        self.decode()
        self.save()
        for workload in captured:
            self.measure_steps(workload, LEVELS if not self.arguments.check else (DEFAULT_INDEX,))
            self.save()
        del captured
        for shape, contexts in self.arguments.plan:
            for context in contexts:
                indexes = tuple(LEVELS)
                if self.arguments.check:  # at 128K the flat one too: its memory is a target
                    indexes = (DEFAULT_INDEX, "<16>") if context == 128 * K else (DEFAULT_INDEX,)
                self.measure_steps(make_diffuse(self.library, shape, context), indexes)
                self.save()

    def save(self):
        """Writes what there is so far."""
        self.results |= {
            "steps": self.steps.rows,
            "step_builds": self.steps.builds,
            "skipped": self.steps.skipped,
        }
        for name in ("bound_accuracy", "generate"):
            path = getattr(self.arguments, name)
            if path is not None and path.exists():
                self.results[name] = json.loads(path.read_text(encoding="utf-8"))
        partial = self.arguments.out.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.arguments.out)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=pathlib.Path, required=True, help="libwavekv_peer.so")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="results file, JSON")
    parser.add_argument("--captured", help="prefix of files that bound_accuracy --capture wrote")
    parser.add_argument("--bound-accuracy", type=pathlib.Path, help="its JSON, kept in the results")
    parser.add_argument("--generate", type=pathlib.Path, help="JSON of wavekv_bench_generate, likewise")
    parser.add_argument("--check", action="store_true", help="short form: what the targets need")
    parser.add_argument("--contexts", type=int, nargs="+", metavar="K", help="in units of 1,024 tokens")
    parser.add_argument("--runs", type=int, help="timed runs of each contender (default 11; 9 with --check)")
    parser.add_argument("--decode-steps", type=int, default=20000, help="steps through sealing")
    arguments = parser.parse_args(argv)
    contexts = arguments.contexts or ([8, 128, 1024] if arguments.check else [8, 32, 128, 512, 1024])
    contexts = [context * K for context in contexts]
    arguments.plan = [(LLAMA, contexts)]
    if not arguments.check:
        arguments.plan.append((SMALL_HEADS, contexts))
    arguments.runs = arguments.runs or (9 if arguments.check else 11)
    # A layer seals every 1,024 tokens, half a KV head a step: with four layers of eight heads over 6 % of the steps seal.
    arguments.decode_layers = 4
    return arguments


def main():
    arguments = parse(sys.argv[1:])
    run = Run(Library(arguments.library), arguments)
    run.everything()
    run.log(f"results in {arguments.out}")


if __name__ == "__main__":
    main()
