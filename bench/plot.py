#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Draws what the benches measured, as PNG files.

Input: the results file of bench/peers/run.sh, whose three pictures are the README's (step_time.png, error_bytes.png,
build_time.png: peers/pictures.py); or JSON files of wavekv_bench_cache_attend (Google Benchmark's format) and of
bound_accuracy, in any number and order. What a file holds is seen from its content. Output of the latter, in --out:

  step_time.png    step time against context, one line for each bound and index, beside the time that
                   the machine needs to read all keys and values
  error_bytes.png  error of the output against bytes read, for each data set and clusterer
"""

import argparse
import itertools
import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402

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


def read_side_by_side(paths):
    """Content of the first results file of bench/peers/run.sh among these, or None."""
    for path in paths:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if isinstance(content, dict) and "step_builds" in content:
            return content
    return None


def draw_side_by_side(results, folder):
    """The README's pictures; returns their paths."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
    import pictures

    return pictures.draw_all(results, folder)


def draw_step_time(steps, reads, path):
    """Step time against context, one panel for each number of threads."""
    panels = sorted({row["threads"] for row in steps}, key=int)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 5), sharey=True, squeeze=False
    )
    for axis, threads in zip(axes[0], panels):
        lines = {}
        for row in steps:
            if row["threads"] == threads:
                key = (row["bound"], row["index"])
                lines.setdefault(key, []).append((int(row["context"]), row["median_ms"]))
        for (bound, index), points in sorted(lines.items()):
            axis.plot(
                *zip(*sorted(points)),
                color=BOUND_COLOURS.get(bound),
                linestyle=INDEX_STYLES.get(index, "-"),
                marker="o",
                markersize=4,
                label=bound if bound == "exact" else f"{bound}, {index.replace('_', ' ')}",
            )
        contexts = sorted({point[0] for points in lines.values() for point in points})
        title = f"{threads} thread{'s' if threads != '1' else ''}"
        if threads in reads:
            limit = [n * KV_BYTES_PER_TOKEN / reads[threads] * 1e3 for n in contexts]
            label = "limit: all K and V at the machine's sequential read"
            axis.plot(contexts, limit, color="black", linewidth=1, linestyle="-.", label=label)
            title += f" (sequential read {reads[threads] / 1e9:.3g} GB/s)"
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(contexts, [f"{n // 1024}K" for n in contexts])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("context, tokens")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("one layer step, ms (median)")
    figure.suptitle("8 KV heads × group 4 × 128, bf16, one query token, cold")
    figure.tight_layout()
    legend_below(figure, axes)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def legend_below(figure, axes):
    """One legend of all panels' lines under the figure."""
    entries = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=3,
        fontsize=8,
    )


def draw_error_bytes(accuracy, path):
    """Median (filled) and 95th percentile (hollow) of the error: a row of panels for each data set, a
    column for each clusterer."""
    accuracy = [row for row in accuracy if row["rule"] != "exact"]
    data_sets = list(dict.fromkeys(row["data"] for row in accuracy))
    clusterers = list(dict.fromkeys(row["clusterer"] for row in accuracy))
    rules = list(dict.fromkeys(row["rule"] for row in accuracy))
    colours = dict(zip(rules, plt.get_cmap("tab10").colors))
    markers = dict(zip(rules, "oPsD^vX"))
    figure, axes = plt.subplots(
        len(data_sets),
        len(clusterers),
        figsize=(6 * len(clusterers), 4.2 * len(data_sets)),
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    for (line, data), (column, clusterer) in itertools.product(
        enumerate(data_sets), enumerate(clusterers)
    ):
        axis = axes[line][column]
        lines = {}
        for row in accuracy:
            if (row["data"], row["clusterer"]) == (data, clusterer):
                lines.setdefault((row["rule"], row["index"]), []).append(row)
        for (rule, index), rows in lines.items():
            rows.sort(key=lambda row: row["bytes_share"])
            share = [100 * row["bytes_share"] for row in rows]
            style = {"color": colours[rule], "marker": markers.get(rule, "o"), "markersize": 5}
            axis.plot(
                share,
                [row["error_p50"] for row in rows],
                linestyle=INDEX_STYLES.get(index, "-"),
                label=f"{rule}; {index.replace('_', ' ')}",
                **style,
            )
            axis.plot(
                share,
                [row["error_p95"] for row in rows],
                linestyle="none",
                markerfacecolor="none",
                alpha=0.5,
                **style,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{data}, {clusterer.replace('_', ' ')}", fontsize=10)
        axis.grid(alpha=0.3, which="both")
        if line == len(data_sets) - 1:
            axis.set_xlabel("bytes read, % of all K and V")
        if column == 0:
            axis.set_ylabel("relative error (filled: median, hollow: p95)")
    figure.tight_layout()
    legend_below(figure, axes)
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
        side_by_side = read_side_by_side(arguments.files)
        steps, reads, accuracy = read_files(arguments.files)
    except (OSError, json.JSONDecodeError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    if side_by_side:
        for path in draw_side_by_side(side_by_side, arguments.out):
            print(path)
        return 0
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
