#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Tests of what judges a run: targets.py on made-up results, and how contenders are packed into memory."""

import copy
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import targets

K = 1024


def steps():
    """Rows of a run in which every target holds."""
    milliseconds = {  # context: limit, exact, default, the dense peer
        128 * K: (20.0, 23.0, 2.0, 90.0),
        1024 * K: (160.0, 184.0, 5.0, 720.0),
    }
    rows = []
    for context, times in milliseconds.items():
        n_bytes = 4096 * context
        for threads in (1, 2):
            for (peer, form), time in zip(
                (
                    ("limit", "read"),
                    ("wavekv", "exact, <16,128>"),
                    ("wavekv", "error_bound, <16,128>"),
                    ("PyTorch", "SDPA"),
                ),
                times,
            ):
                median = time / (1 if threads == 1 else 1.9)
                rows.append(
                    {
                        "peer": peer,
                        "form": form,
                        "scalar": "bf16",
                        "data": "diffuse",
                        "shape": targets.LLAMA,
                        "context": context,
                        "threads": threads,
                        "batch": 0,
                        "median_ms": median,
                        "gb_s": n_bytes / median * 1e-6,
                        "error_p50": 0.01,
                        "error_p95": 0.05,
                    }
                )
    return rows


def passing():
    """Content of a results file that holds every target."""
    accuracy = []
    for data in ("diffuse 10", "model layer 0"):
        for rule, epsilons in (
            ("error_bound", (0.02,)),
            ("error_bound, no caps", (0.2, 0.1, 0.05)),
            ("verified_bound", (0.2, 0.1, 0.05)),
        ):
            for epsilon in epsilons:
                accuracy.append(
                    {
                        "data": data,
                        "rule": rule,
                        "index": "two_level",
                        "clusterer": "query_metric",
                        "epsilon": epsilon,
                        "coverage": 0.97,
                        "error_p50": 0.01,
                        "error_p95": 0.05,
                    }
                )
    sizes = {"index_bytes": 70, "learnt_bytes": 5, "kv_bytes": 1000}
    return {
        "steps": steps(),
        "clustering": [
            {"data": "normal", "peer": "wavekv", "median_ms": 20.0, "mean_cosine": 0.4},
            {"data": "normal", "peer": "faiss", "median_ms": 100.0, "mean_cosine": 0.39},
        ],
        "build": [
            {"context": context, "threads": threads, "shape": targets.LLAMA, "build_s": 2.0, "prefill_s": 100.0}
            for context in (32 * K, 128 * K)
            for threads in (1, 2)
        ],
        "step_builds": [
            {"index": index, "shape": targets.LLAMA, "context": 128 * K, **sizes}
            for index in ("<16>", "<16,128>")
        ],
        "decode": [{"layers": 16, "steps": 20000, "segments_sealed": 300, "p50_ms": 1.0, "p99_ms": 1.5}],
        "prefill": [
            {"peer": peer, "threads": threads, "median_s": seconds}
            for peer, seconds in (("wavekv", 6.0), ("PyTorch", 7.0), ("PyTorch", 9.0))
            for threads in (1, 2)
        ],
        "bound_accuracy": {"bound_accuracy": accuracy},
        "generate": {"runs": [{"threads": n, "decode_share": 0.8, "projections_share": 0.8} for n in (1, 2)]},
    }


def short(results):
    """What falls short or is not measured."""
    return {target.what for target in targets.evaluate(results) if not target.holds}


class Targets(unittest.TestCase):
    def test_all_hold(self):
        self.assertEqual(short(passing()), set())

    def test_nothing_measured_is_no_pass(self):
        found = targets.evaluate({})
        self.assertGreater(len(found), 30)
        self.assertTrue(all(target.verdict == "NOT MEASURED" for target in found))

    def test_best_form_counts(self):
        results = passing()
        faster = copy.deepcopy(results["steps"][3])
        faster |= {"form": "another", "median_ms": 50.0}
        results["steps"].append(faster)
        self.assertEqual(
            short(results),
            {"exact at 128K against PyTorch's best form", "default at 128K against PyTorch's best form"},
        )

    def test_ratio_is_taken_within_the_batch(self):
        results = passing()
        rows = results["steps"]
        again = [copy.deepcopy(row) | {"batch": 1} for row in rows[2:4]]
        again[0]["median_ms"], again[1]["median_ms"] = 4.0, 80.0  # slower neighbours: 20 times, not 40
        results["steps"] += again
        self.assertIn("default at 128K against PyTorch's best form", short(results))

    def test_each_part_can_fall_short(self):
        for change, what in (
            (lambda r: r["decode"][0].update(p99_ms=2.1), "step through sealing: p99 over median"),
            (lambda r: r["clustering"][0].update(mean_cosine=0.38), "clustering: mean cosine less faiss's: normal"),
            (lambda r: r["build"][0].update(build_s=3.5), "index build of exact prefill attention at 32K"),
            (lambda r: r["step_builds"][1].update(index_bytes=90), "memory beyond K and V, <16,128>, at 128K"),
            (lambda r: r["prefill"][0].update(median_s=7.5), "exact prefill of 8K against PyTorch's"),
            (lambda r: r["generate"]["runs"][1].update(decode_share=0.6),
             "generate, 1B bf16: decode of weight bytes / read bandwidth"),
        ):  # fmt: skip
            results = passing()
            change(results)
            self.assertEqual(short(results), {what})

    def test_accuracy_is_asked_over_all_layers(self):
        results = passing()
        rows = results["bound_accuracy"]["bound_accuracy"]
        layer = [row for row in rows if row["data"] == "model layer 0"]
        rows += [row | {"data": "model, all layers"} for row in copy.deepcopy(layer)]
        for row in layer:
            row |= {"error_p50": 0.03, "error_p95": 0.2}  # of one layer alone
        self.assertEqual(short(results), set())
        rows[-len(layer)]["error_p95"] = 0.11
        self.assertEqual(short(results), {"default's error, 95th percentile"})

    def test_exit_status(self):
        for results, status in ((passing(), 0), ({}, 1)):
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "results.json"
                path.write_text(json.dumps(results), encoding="utf-8")
                done = subprocess.run(
                    [sys.executable, targets.__file__, str(path)], capture_output=True, text=True, check=False
                )
                self.assertEqual(done.returncode, status, done.stdout + done.stderr)
                self.assertEqual("PASS" in done.stdout, status == 0)


if __name__ == "__main__":
    unittest.main()
