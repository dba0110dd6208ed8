# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Prints what bench/buffer/run.sh measured: a table of eviction policies and budgets, one of transfer engines, and every
number that must hold beside what was measured. Exits with 1 where one falls short."""

import argparse
import json
import sys


def percent(share):
    return f"{100 * share:g} %"


def rows_of(decode, **wanted):
    return [row for row in decode["caches"] if all(row[key] == value for key, value in wanted.items())]


def policy_of(row):
    return row["cache"].split("/")[0]


def engine_of(row):
    return row["cache"].split("/")[1]


def main_engine(decode):
    """The engine that every policy was measured with."""
    return engine_of(next(row for row in decode["caches"] if policy_of(row) == "clock"))


def policy_table(decode, replay):
    """Eviction and budget: hit ratio and step time, beside the resident cache and Belady."""
    engine = main_engine(decode)
    print(f"| RAM for | hit ratio: lru | clock | sieve | Belady | step, ms: lru | clock | sieve | resident |")
    print("|---|---|---|---|---|---|---|---|---|")
    for best in replay:
        budget = best["budget"]
        rows = {policy_of(row): row for row in rows_of(decode, budget=budget) if engine_of(row) == engine}
        if not rows:
            continue
        order = [rows[name] for name in ("lru", "clock", "sieve")]
        resident = sorted(row["resident_ms"] for row in order)[1]
        cells = [percent(budget)]
        cells += [f"{row['hit_ratio']:.3f}" for row in order] + [f"{best['belady']:.3f}"]
        cells += [f"{row['step_ms']:.2f}" for row in order] + [f"{resident:.2f}"]
        print("| " + " | ".join(cells) + " |")


def engine_table(decode, budget):
    print(f"| engine (lru, RAM for {percent(budget)}) | step, ms (p95) | resident, ms (p95) | waited, ms | hidden |")
    print("|---|---|---|---|---|")
    inline = next(row for row in rows_of(decode, budget=budget) if row["cache"] == "lru/inline_read")
    for row in rows_of(decode, budget=budget):
        if policy_of(row) == "lru":
            hidden = 1 - row["stall_ms"] / inline["stall_ms"]
            print(
                f"| {engine_of(row)} | {row['step_ms']:.2f} ({row['step_p95_ms']:.2f}) | "
                f"{row['resident_ms']:.2f} ({row['resident_p95_ms']:.2f}) | {row['stall_ms']:.2f} | {percent(round(hidden, 3))} |"
            )


def targets(decode, memory):
    """(what, measured, bound, whether it holds)"""
    found = []

    def at_least(what, value, bound, form="{:.3f}"):
        found.append((what, form.format(value), "≥ " + form.format(bound), value >= bound))

    def at_most(what, value, bound, form="{:.3f}"):
        found.append((what, form.format(value), "≤ " + form.format(bound), value <= bound))

    engine = main_engine(decode)
    rows = rows_of(decode, budget=0.1)
    inline = next(row for row in rows if row["cache"] == "lru/inline_read")
    for row in rows:
        if engine_of(row) == engine:
            name = policy_of(row)
            at_least(f"hit ratio, {name}, RAM for 10 %", row["hit_ratio"], 0.8)
            at_most(f"step beside resident, {name}/{engine}", row["step_ms"] / row["resident_ms"], 2.0, "{:.2f}")
            at_most(f"bytes moved per step, of K and V, {name}", row["bytes_moved"], 0.02, "{:.4f}")
    for row in rows:
        if policy_of(row) == "lru" and row is not inline:
            at_least(f"transfer time hidden, {engine_of(row)}", 1 - row["stall_ms"] / inline["stall_ms"], 0.7)
    worst = max(row["difference"] for row in decode["caches"])
    at_most("difference of any output row from resident, relative", worst, 1e-5, "{:.1e}")
    slowest = sorted(row["load_s"] for row in decode["caches"])[len(decode["caches"]) // 2]
    at_most(f"load beside build of {decode['tokens']} tokens", slowest / decode["build_s"], 0.02, "{:.4f}")
    grow = memory["grow"]
    at_most(f"memory beside what is allowed, {grow['tokens']} tokens appended", grow["worst_share"], 1.05)
    # What is alive differs from fifth to fifth, and the process is small: a megabyte is no growth.
    live = memory["live"]
    at_most(f"growth of memory, MB, between the second and the last fifth of {live['steps']} steps of create to release",
            (live["end_bytes"] - live["early_bytes"]) * 1e-6, max(1.0, 0.05e-6 * live["early_bytes"]), "{:.1f}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decode", required=True)
    parser.add_argument("--replay", required=True)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--tables", action="store_true", help="print the tables alone and judge nothing")
    files = parser.parse_args()
    decode, replay, memory = (json.load(open(path)) for path in (files.decode, files.replay, files.memory))
    print(
        f"{decode['tokens']} tokens, one layer of the Llama-3.1-8B shape, {decode['steps']} decode steps of the example's"
        f" model after {decode['warm_up']} that warm the cache up, {decode['threads']} thread, {main_engine(decode)}:\n"
    )
    policy_table(decode, replay)
    print()
    engine_table(decode, 0.1)
    if files.tables:
        return 0
    print("\n| what must hold | measured | asked | |\n|---|---|---|---|")
    all_hold = True
    for what, value, bound, holds in targets(decode, memory):
        print(f"| {what} | {value} | {bound} | {'holds' if holds else 'FALLS SHORT'} |")
        all_hold = all_hold and holds
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
