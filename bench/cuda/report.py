#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Ratios of one run of ../run_cuda.sh: report.py RESULTS.json [--check]

Prints the default bound and exact attention beside the best dense peer, and each number to hold with what was reached.
--check: ends with 1 where one is not reached or could not be measured.
"""

import argparse
import json
import sys


def best_dense(torch, context, batch):
    """Seconds of the fastest form and backend of PyTorch, or None."""
    times = [
        row["us"] * 1e-6
        for row in torch.get("rows", [])
        if row["form"] != "prefill" and (row["context"], row["batch"]) == (context, batch) and "us" in row
    ]
    return min(times, default=None)


def best_prefill(torch, context):
    """Seconds of the fastest causal attention of a whole prompt, or None."""
    times = [
        row["us"] * 1e-6
        for row in torch.get("rows", [])
        if row["form"] == "prefill" and row["context"] == context and "us" in row
    ]
    return min(times, default=None)


def ratio(above, below):
    """above / below where both were measured."""
    return above / below if above is not None and below else None


def held(measured):
    """(what, reached or None, comparison, limit) for each number to hold."""
    torch = measured.get("torch", {})
    attend = {(row["context"], row["batch"], row["bound"]): row["seconds"] for row in measured.get("attend", [])}
    build = {row["context"]: row["layer_seconds"] for row in measured.get("build", [])}
    at = 131072
    return [
        (
            f"exact, {at} tokens, batch {batch}: best dense peer / ours",
            ratio(best_dense(torch, at, batch), attend.get((at, batch, "exact"))),
            ">=",
            0.9,
        )
        for batch in (1, 8)
    ] + [
        (
            f"default, {at} tokens, batch {batch}: best dense peer / ours",
            ratio(best_dense(torch, at, batch), attend.get((at, batch, "default"))),
            ">=",
            limit,
        )
        for batch, limit in ((1, 5.0), (8, 10.0))
    ] + [
        (
            "default, batch 1: step at 1M / step at 128K",
            ratio(attend.get((1048576, 1, "default")), attend.get((at, 1, "default"))),
            "<=",
            3.0,
        ),
        (
            f"index build / causal attention of the prompt, {at} tokens",
            ratio(build.get(at), best_prefill(torch, at)),
            "<=",
            0.05,
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with open(arguments.results, encoding="utf-8") as file:
        result = json.load(file)
    measured = result["measured"]
    print(f"{result['card']}, driver {result['driver']}, commit {result['commit']}")
    print("context   batch  bound    us a layer  best dense peer / ours")
    for row in measured.get("attend", []):
        dense = ratio(best_dense(measured.get("torch", {}), row["context"], row["batch"]), row["seconds"])
        peer = f"{dense:.2f}" if dense is not None else "not measured"
        print(f"{row['context']:>8}  {row['batch']:>5}  {row['bound']:<8} {row['seconds'] * 1e6:>9.1f}  {peer}")
    all_held = True
    for what, reached, comparison, limit in held(measured):
        if reached is None:
            verdict = "not measured"
        elif reached >= limit if comparison == ">=" else reached <= limit:
            verdict = "held"
        else:
            verdict = "NOT HELD"
        all_held = all_held and verdict == "held"
        value = f"{reached:.3f}" if reached is not None else "-"
        print(f"{what}: {value} (asked {comparison} {limit}): {verdict}")
    return 1 if arguments.check and not all_held else 0


if __name__ == "__main__":
    sys.exit(main())
