# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The README's three pictures, from a results file of the side-by-side run; ../plot.py calls draw_all."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

from report import size  # noqa: E402
from targets import DENSE, LLAMA  # noqa: E402

WAVEKV = {"exact": "#6baed6", "fixed_budget": "#9e9ac8", "verified_bound": "#31a354", "error_bound": "#08519c"}
PEERS = {"PyTorch": "#e6550d", "onnxruntime": "#8c6d31", "OpenVINO": "#ad494a", "ggml": "#7b7b7b"}
RULES = {
    "error_bound": ("#08519c", "o", "wavekv error_bound, ε from 20 to 1 %"),
    "error_bound, budget": ("#6baed6", "s", "wavekv error_bound, 0.5 to 5 % read"),
    "verified_bound": ("#31a354", "^", "wavekv verified_bound, ε 20, 10, 5 %"),
    "fixed_budget": ("#9e9ac8", "D", "fixed_budget (RetroInfer's rule)"),
    "sink + window (StreamingLLM)": ("#e6550d", "v", "sink + window (StreamingLLM's rule)"),
    "pages of 16 (Quest)": ("#ad494a", "P", "pages of 16 (Quest's rule)"),
    "top-k tokens (oracle)": ("#7b7b7b", "X", "top-k tokens, search for free"),
}
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


def _log_contexts(axis, contexts):
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(contexts, [size(context) for context in contexts])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("context, tokens")


def _label_ends(axis, labels, gap=0.045):
    """Writes (x, y, text, colour) at line ends to the right, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    place = axis.transData
    inverse = axis.transAxes.inverted()
    spots = sorted((inverse.transform(place.transform((x, y)))[1], text, colour) for x, y, text, colour in labels)
    heights = [spot[0] for spot in spots]
    for _ in range(200):  # push neighbours apart, little by little
        for i in range(len(heights) - 1):
            short = gap - (heights[i + 1] - heights[i])
            if short > 1e-6:
                heights[i] -= short / 2
                heights[i + 1] += short / 2
    for height, (_, text, colour) in zip(heights, spots):
        axis.text(1.01, height, text, color=colour, transform=axis.transAxes, va="center", fontsize=10)
    axis.set_ylim(low, high)


def _first(rows):
    """Rows by (context, peer, form, scalar): of those measured in several batches the first."""
    found = {}
    for row in rows:
        found.setdefault((row["context"], row["peer"], row["form"], row["scalar"]), row)
    return list(found.values())


def draw_step_time(results, path):
    """Step time against context: a panel for each number of threads."""
    rows = [r for r in results["steps"] if (r["data"], r["shape"]) == ("diffuse", LLAMA)]
    panels = sorted({row["threads"] for row in rows})
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(7.4 * len(panels), 5.6), squeeze=False, sharey=True)
    for axis, threads in zip(axes[0], panels):
        mine = _first([row for row in rows if row["threads"] == threads])
        contexts = sorted({row["context"] for row in mine})
        lines = []
        for rule, colour in WAVEKV.items():
            points = [(r["context"], r["median_ms"]) for r in mine
                      if r["peer"] == "wavekv" and r["form"] == f"{rule}, <16,128>"]  # fmt: skip
            name = "default (error_bound)" if rule == "error_bound" else rule
            lines.append((points, colour, "-", f"wavekv {name}"))
        for peer in DENSE:
            best = {}
            for row in mine:
                if row["peer"] == peer:
                    known = best.get(row["context"], row["median_ms"])
                    best[row["context"]] = min(known, row["median_ms"])
            lines.append((list(best.items()), PEERS[peer], "--", peer))
        limit = [(r["context"], r["median_ms"]) for r in mine if r["peer"] == "limit"]
        lines.append((limit, "black", ":", "limit: reading all K and V"))
        labels = []
        for points, colour, style, text in lines:
            if points:
                points.sort()
                width = 3 if "default" in text else 1.8
                axis.plot(*zip(*points), style, color=colour, marker="o", linewidth=width)
                labels.append((*points[-1], text, colour))
        _log_contexts(axis, contexts)
        axis.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
        axis.set_xlim(contexts[0] * 0.9, contexts[-1] * 1.05)
        figure.canvas.draw()
        _label_ends(axis, labels)
    axes[0][0].set_ylabel("one decode step of one layer, ms (median)")
    figure.suptitle("8 KV heads × group 4 × 128, K and V cold in cache; dashed: each peer's fastest form")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def draw_error_bytes(results, path):
    """Error against bytes read: columns are data sets, rows the median and the 95th percentile."""
    accuracy = [row for row in results.get("bound_accuracy", {}).get("bound_accuracy", [])
                if (row["index"], row["clusterer"]) == ("two_level", "query_metric")
                and not row["data"].endswith("all layers")]  # fmt: skip
    accuracy = [{**row, "data": _same_name(row["data"])} for row in accuracy] + results.get("rules", [])
    data_sets = sorted({row["data"] for row in accuracy})
    if not data_sets:
        return False
    figure, axes = plt.subplots(
        2, len(data_sets), figsize=(4.9 * len(data_sets), 8.2), squeeze=False, sharex=True, sharey="row"
    )
    handles = {}
    for column, data in enumerate(data_sets):
        for line, (key, title) in enumerate((("error_p50", "median"), ("error_p95", "95th percentile"))):
            axis = axes[line][column]
            for rule, (colour, marker, text) in RULES.items():
                points = sorted((100 * r["bytes_share"], 100 * max(r[key], 1e-5)) for r in accuracy
                                if (r["data"], r["rule"]) == (data, rule))  # fmt: skip
                if points:
                    handles[text], = axis.plot(*zip(*points), color=colour, marker=marker, label=text)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:g}")
            if line == 0:
                axis.set_title(data)
            else:
                axis.set_xlabel("bytes read, % of all K and V")
            if column == 0:
                axis.set_ylabel(f"output error, %, {title}")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _same_name(data):
    """bound_accuracy's name of a data set as the side-by-side run calls it."""
    if data.startswith("model layer "):
        return f"captured, layer {int(data.split()[-1]) + 1}"
    return data.split()[0]


def draw_build_time(results, path):
    """Build time against context, beside exact prefill attention and what other indexes cost; all KV heads."""
    builds = [row for row in results.get("build", []) if row["shape"] == LLAMA]
    if not builds:
        return False
    threads = max(row["threads"] for row in builds)
    n_heads = int(LLAMA.split("x")[0])
    figure, axis = plt.subplots(figsize=(8.6, 5.6))
    lines = []
    mine = sorted((row["context"], row["build_s"], row["prefill_s"]) for row in builds if row["threads"] == threads)
    contexts = [context for context, _, _ in mine]
    prefill = [(context, seconds) for context, _, seconds in mine]
    lines.append((prefill, "black", ":", "exact prefill attention"))
    lines.append(([(c, 0.03 * s) for c, s in prefill], "#999999", ":", "3 % of it"))
    graph = [(row["keys"], n_heads * row["build_s"]) for row in results.get("graph", [])]
    lines.append((graph, "#ad494a", "--", "hnswlib (8 × one KV head)"))
    faiss = [row for row in results.get("clustering", []) if row["peer"] == "faiss" and row["data"].startswith("diffuse")]
    if faiss:
        each = faiss[0]["median_ms"] * 1e-3 * n_heads / faiss[0]["tokens"] / threads
        lines.append(([(c, each * c) for c in contexts], "#e6550d", "--", "faiss k-means of its segments"))
    lines.append(([(c, s) for c, s, _ in mine], "#08519c", "-", "wavekv <16,128>, whole index"))
    labels = []
    for points, colour, style, text in lines:
        if points:
            points = sorted(points)
            axis.plot(*zip(*points), style, color=colour, marker="o", linewidth=3 if "wavekv" in text else 1.8)
            labels.append((*points[-1], text, colour))
    _log_contexts(axis, contexts)
    axis.set_ylabel("seconds")
    axis.set_title(f"Building the index of one layer, 8 KV heads × 128, {threads} threads")
    figure.canvas.draw()
    _label_ends(axis, labels)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def draw_all(results, folder):
    """Draws what the results hold rows for; returns the paths."""
    drawn = []
    with plt.rc_context(STYLE):
        for name, draw in (
            ("step_time.png", draw_step_time),
            ("error_bytes.png", draw_error_bytes),
            ("build_time.png", draw_build_time),
        ):
            if draw(results, folder / name):
                drawn.append(folder / name)
    return drawn
