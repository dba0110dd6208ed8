#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Draws what the benches measured, as PNG files.

Input: JSON files of wavekv_bench_cache_attend (Google Benchmark's format) and of bound_accuracy, in
any number and order; what a file holds is seen from its content. Output, in --out:

  step_time.png    step time against context, one line for each bound and index, beside the time that
                   the machine needs to read all keys and values
  error_bytes.png  error of the output against bytes read, one panel for each data set
"""

import argparse
import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

KV_BYTES_PER_TOKEN = 8 * 2 * 128 * 2  # the layer shape of attend_bench: KV heads, K and V, dim, bf16

BOUND_COLOURS = {
    "exact": "#444444",
    "fixed_budget": "#d95f02",
    "error_bound": "#1b9e77",
    "verified_bound": "#7570b3",
}
INDEX_STYLES = {"flat": ":", "two_level": "-", "three_level": "--"}


def read_files(paths):
    """The attend rows, the sequential reads (threads -> bytes/s) and the accuracy rows of all files."""
    steps, reads, accuracy = [], {}, []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            continue
        accuracy += content.get("bound_accuracy", [])
        for row in content.get("benchmarks", []):
            if row.get("error_occurred") or row.get("run_type") == "aggregate":
                continue
            name, *fields = row["name"].split("/")
            named = dict(field.split(":", 1) for field in fields if ":" in field)
            if name == "attend":
                steps.append({**row, **named})
            elif name == "sequential_read" and "threads" in named:
                reads[named["threads"]] = row["bytes_per_second"]
    return steps, reads, accuracy


def draw_step_time(steps, reads, path):
    """Step time against context, one panel for each number of threads."""
    panels = sorted({row["threads"] for row in steps}, key=int)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), 5.2), sharey=True, squeeze=False
    )
    for axis, threads in zip(axes[0], panels):
        lines = {}
        for row in steps:
            if row["threads"] == threads:
                key = (row["bound"], row["index"])
                lines.setdefault(key, []).append((int(row["context"]), row["median_ms"]))
        for (bound, index), points in sorted(lines.items()):
            points.sort()
            label = bound if bound == "exact" else f"{bound}, {index.replace('_', ' ')}"
            axis.plot(
                *zip(*points),
                color=BOUND_COLOURS.get(bound),
                linestyle=INDEX_STYLES.get(index, "-"),
                marker="o",
                markersize=4,
                label=label,
            )
        contexts = sorted({point[0] for points in lines.values() for point in points})
        if threads in reads:
            limit = [n * KV_BYTES_PER_TOKEN / reads[threads] * 1e3 for n in contexts]
            label = f"limit: all K and V at {reads[threads] / 1e9:.0f} GB/s"
            axis.plot(contexts, limit, color="black", linewidth=1, linestyle="-.", label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(contexts, [f"{n // 1024}K" for n in contexts])
        axis.set_xlabel("context, tokens")
        axis.set_title(f"{threads} thread{'s' if threads != '1' else ''}")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("one layer step, ms (median)")
    figure.suptitle("8 KV heads × group 4 × 128, bf16, one query token, cold")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_error_bytes(accuracy, path):
    """Median (filled) and 95th percentile (hollow) of the error against bytes read."""
    data_sets = list(dict.fromkeys(row["data"] for row in accuracy))
    n_columns = min(2, len(data_sets))
    n_rows = -(-len(data_sets) // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(7 * n_columns, 5 * n_rows), squeeze=False
    )
    for axis in axes.flat[len(data_sets) :]:
        axis.axis("off")
    colours = plt.get_cmap("tab20").colors
    keys = list(
        dict.fromkeys((row["rule"], row["index"], row["clusterer"]) for row in accuracy)
    )
    keys = [key for key in keys if key[0] != "exact"]
    rules = list(dict.fromkeys(key[0] for key in keys))
    markers = dict(zip(rules, "osD^vPX"))
    variants = list(dict.fromkeys(key[1:] for key in keys))
    for axis, data in zip(axes.flat, data_sets):
        for rule, index, clusterer in keys:
            rows = [
                row
                for row in accuracy
                if (row["data"], row["rule"], row["index"], row["clusterer"])
                == (data, rule, index, clusterer)
            ]
            rows = sorted(rows, key=lambda row: row["bytes_share"])
            if not rows:
                continue
            at = rules.index(rule) * len(variants) + variants.index((index, clusterer))
            colour = colours[(2 * rules.index(rule)) % 20 + at % 2]
            style = {
                "color": colour,
                "marker": markers.get(rule, "o"),
                "linestyle": "-" if index == "two_level" else ":",
                "markersize": 5,
            }
            share = [100 * row["bytes_share"] for row in rows]
            label = f"{rule}; {index.replace('_', ' ')}, {clusterer.replace('_', ' ')}"
            axis.plot(share, [row["error_p50"] for row in rows], label=label, **style)
            style.update(linestyle="none", markerfacecolor="none", alpha=0.5)
            axis.plot(share, [row["error_p95"] for row in rows], **style)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("bytes read, % of all K and V")
        axis.set_ylabel("relative error of the output (filled: median, hollow: p95)")
        axis.set_title(data)
        axis.grid(alpha=0.3, which="both")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=8
    )
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="JSON files of the benches")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="directory")
    arguments = parser.parse_args()
    try:
        steps, reads, accuracy = read_files(arguments.files)
    except (OSError, json.JSONDecodeError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    if steps:
        draw_step_time(steps, reads, arguments.out / "step_time.png")
        print(arguments.out / "step_time.png")
    if accuracy:
        draw_error_bytes(accuracy, arguments.out / "error_bytes.png")
        print(arguments.out / "error_bytes.png")
    if not steps and not accuracy:
        print("plot.py: no attend steps and no bound_accuracy in these files", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
