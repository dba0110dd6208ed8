#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A results file of the side-by-side run as Markdown tables: `report.py RESULTS.json`."""

import json
import pathlib
import sys

from words import LIMIT


def size(tokens):
    """128K, 1M."""
    return f"{tokens >> 20}M" if tokens % (1 << 20) == 0 else f"{tokens // 1024}K"


def heading(results):
    """Machine, compiler, commit, peers' versions."""
    machine = results["machine"]
    peers = ", ".join(f"{name} {version}" for name, version in results["peers"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['instructions'])}), "
        f"{machine['memory_gb']} GB; {machine['compiler']}; commit {machine['commit']}; {machine['date']}\n"
        f"Peers: {peers or 'none'}"
    )


def _table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _median(row):
    return row["median_ms"]


def step_tables(rows):
    """A table for each workload and number of threads, slowest first; of rows measured in several batches the first."""
    groups = {}
    for row in rows:
        key = (row["data"], row["shape"], row["context"], row["threads"])
        names = groups.setdefault(key, {})
        names.setdefault((row["peer"], row["form"], row["scalar"]), row)
    for (data, shape, context, threads), named in groups.items():
        rows = sorted(named.values(), key=_median, reverse=True)
        dense = [row for row in rows if row["peer"] not in (LIMIT, "wavekv")]
        best = min(dense, key=_median) if dense else None
        cells = []
        for row in rows:
            error = (
                f"{row['error_p50']:.4f} / {row['error_p95']:.4f}" if "error_p50" in row else ""
            )
            ratio = f"{best['median_ms'] / row['median_ms']:.2f}" if best else ""
            cells.append(
                [
                    row["peer"],
                    row["form"],
                    row["scalar"],
                    f"{row['median_ms']:.2f} ({row['min_ms']:.2f})",
                    f"{row['bytes_read'] / 1e6:.1f}",
                    f"{row['gb_s']:.1f}",
                    ratio,
                    error,
                    f"{100 * row['capped']:.0f} %" if "capped" in row else "",
                ]
            )
        title = f"### {size(context)} tokens, {data}, {shape}, {threads} thread{'s' if threads > 1 else ''}"
        columns = ["", "form", "K and V", "ms, median (min)", "MB read", "GB/s",
                   "times the best dense peer's speed", "error, median / p95", "capped"]  # fmt: skip
        yield f"{title}\n\n{_table(columns, cells)}"


def _curves(results):
    rows = [
        [curve["data"], curve["shape"], size(curve["context"]), f"{100 * float(share):g} %",
         " ".join(f"{100 * n / curve['context']:.2g}" for n in counts)]
        for curve in results.get("curves", [])
        for share, counts in curve["tokens"].items()
    ]  # fmt: skip
    columns = ["data", "shape", "tokens", "share of a query's mass", "lies on this % of the tokens, by query head"]
    return "### How far attention spreads", columns, rows


def _clustering(results):
    rows = [
        [row["data"], row["peer"], f"{row['median_ms']:.1f} ({row['min_ms']:.1f})", f"{row['mean_cosine']:.4f}"]
        for row in results.get("clustering", [])
    ]
    title = "### Spherical k-means, 8,192 keys to 512 clusters, 10 iterations, one thread"
    return title, ["keys", "", "ms, median (min)", "mean cosine"], rows


def _graph(results):
    rows = [
        [size(row["keys"]), str(row["threads"]), f"{row['build_s']:.1f}",
         f"{row['build_s'] * (128 << 10) / row['keys']:.1f}", f"{row['query_p50_ms']:.2f}", f"{row['recall']:.3f}"]
        for row in results.get("graph", [])
    ]  # fmt: skip
    columns = ["keys of one KV head", "threads", "build, s", "s per 128K keys (in proportion)",
               "top-100 query, ms", "recall"]  # fmt: skip
    return "### A graph index instead: hnswlib, 16 links, build width 200, query width 200", columns, rows


def _build(results):
    rows = [
        [size(row["context"]), str(row["threads"]), f"{row['build_s']:.2f}", f"{row['prefill_s']:.1f}",
         f"{100 * row['build_s'] / row['prefill_s']:.2f} %",
         f"{100 * (row['index_bytes'] + row['learnt_bytes']) / row['kv_bytes']:.2f} %"]
        for row in results.get("build", [])
    ]  # fmt: skip
    columns = ["tokens", "threads", "build, s", "exact prefill attention, s (from chunks)", "share",
               "memory beyond K and V"]  # fmt: skip
    return "### Building the index, <16,128>, 8x4x128", columns, rows


def _memory(results):
    rows = [
        [row["index"], row["data"], row["shape"], size(row["context"]), f"{row['seconds']:.2f}",
         f"{100 * row['index_bytes'] / row['kv_bytes']:.2f} %", f"{100 * row['learnt_bytes'] / row['kv_bytes']:.2f} %"]
        for row in results.get("step_builds", [])
    ]  # fmt: skip
    columns = ["index", "data", "shape", "tokens", "build on all cores, s", "index over K and V", "learnt over K and V"]
    return "### Memory beyond K and V", columns, rows


def _prefill(results):
    rows = [
        [row["peer"], row["form"], size(row["context"]), str(row["threads"]),
         f"{row['median_s']:.2f} ({row['min_s']:.2f})"]
        for row in results.get("prefill", [])
    ]  # fmt: skip
    return "### Causal prefill, bf16, 8x4x128", ["", "form", "tokens", "threads", "s, median (min)"], rows


def _decode(results):
    rows = [
        [str(row["layers"]), size(row["context"]), str(row["steps"]), str(row["threads"]),
         f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['max_ms']:.2f}", str(row["segments_sealed"])]
        for row in results.get("decode", [])
    ]  # fmt: skip
    columns = ["layers", "from tokens", "steps", "threads", "median ms", "p99 ms", "max ms", "segments sealed"]
    return "### Steps through sealing, default bound, 8x4x128", columns, rows


def _coverage(results):
    rows = [
        [row["data"], row["rule"], f"{row['epsilon']:g}", "5 %" if row["rule"] == "verified_bound" else "",
         f"{100 * row['coverage']:.1f} %", f"{100 * row['capped_share']:.0f} %",
         f"{row['error_p50']:.4f} / {row['error_p95']:.4f}", f"{100 * row['bytes_share']:.1f} %"]
        for row in results.get("bound_accuracy", {}).get("bound_accuracy", [])
        if "coverage" in row and (row["index"], row["clusterer"]) == ("two_level", "query_metric")
    ]  # fmt: skip
    columns = ["data", "bound", "asked ε", "asked δ", "within ε", "met a cap", "error, median / p95", "bytes read"]
    return "### Bounds: asked and observed, <16,128>", columns, rows


def _generate(results):
    rows = [
        [str(row["threads"]), f"{row['decode_tokens_s']:.2f}", f"{row['decode_gb_s']:.1f} of {row['read_gb_s']:.1f}",
         f"{row['projections_gflops']:.0f} of {row['gemm_gflops']:.0f}"]
        for row in results.get("generate", {}).get("runs", [])
    ]  # fmt: skip
    columns = ["threads", "tokens/s", "decode: GB/s of weights, of read bandwidth", "prefill: GFLOP/s, of GEMM alone"]
    return "### A random bf16 Llama of 1B parameters", columns, rows


def _skipped(results):
    rows = [[row["what"], row["where"], row["why"]] for row in results.get("skipped", [])]
    return "### Skipped", ["what", "where", "why"], rows


SECTIONS = (_curves, _clustering, _build, _memory, _graph, _prefill, _decode, _coverage, _generate, _skipped)


def report(results):
    """The whole report; parts without rows are left out."""
    parts = [heading(results), *step_tables(results.get("steps", []))]
    for section in SECTIONS:
        title, columns, rows = section(results)
        if rows:
            parts.append(f"{title}\n\n{_table(columns, rows)}")
    return "\n\n".join(parts)


def main(argv):
    if len(argv) != 2:
        print("usage: report.py RESULTS.json", file=sys.stderr)
        return 2
    print(report(json.loads(pathlib.Path(argv[1]).read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
