# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Rules of other sparse-attention methods: which tokens they read, how far their answers lie from full attention's.

Read from each method's paper and computed in numpy, in the same answers' terms as bound_accuracy's rows: nothing here is
timed. A rule chooses tokens for a group, reads them exactly and drops the rest."""

import numpy as np

from workload import from_bf16, relative_errors

SINK, PAGE = 4, 16
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def _sink_and_window(scores, keys, rows, n):
    """StreamingLLM (arXiv 2309.17453): the first tokens and the newest."""
    tokens = len(keys)
    return np.r_[:SINK, tokens - (n - SINK) : tokens], 0


def _top_k(scores, keys, rows, n):
    """An oracle: the tokens of the largest logits, its search taken as free."""
    return np.argpartition(-scores.max(axis=0), n)[:n], 0


def _pages(scores, keys, rows, n):
    """Quest (arXiv 2406.10774): pages of 16 tokens by the largest logit their least and largest elements allow."""
    n_pages = len(keys) // PAGE
    paged = keys[: n_pages * PAGE].reshape(n_pages, PAGE, -1)
    bound = np.maximum(rows, 0) @ paged.max(axis=1).T + np.minimum(rows, 0) @ paged.min(axis=1).T
    chosen = np.argsort(-bound.max(axis=0))[: max(1, n // PAGE)]
    tokens = (chosen[:, None] * PAGE + np.arange(PAGE)).ravel()
    newest = np.arange(len(keys) - PAGE, len(keys))  # the page being written is read too
    return np.union1d(tokens, newest), n_pages  # a least and a largest key: as many bytes as one token


RULES = {
    "sink + window (StreamingLLM)": _sink_and_window,
    "top-k tokens (oracle)": _top_k,
    "pages of 16 (Quest)": _pages,
}


def accuracy(workload):
    """A row for each rule and budget: share of the bytes of all K and V that it reads, error median and p95."""
    expected = workload.expected()
    group = workload.shape.group_size
    errors, read = {}, {}
    for head in range(workload.shape.n_kv_heads):
        keys, values = from_bf16(workload.keys[head]), from_bf16(workload.values[head])
        heads = slice(head * group, (head + 1) * group)
        for probe, wanted in zip(workload.probes[:, heads], expected[:, heads]):
            rows = probe * np.float32(workload.scale)
            scores = rows @ keys.T
            for share in SHARES:
                n = max(2 * PAGE, int(share * len(keys)))
                for name, rule in RULES.items():
                    tokens, summaries = rule(scores, keys, rows, n)
                    weights = np.exp(
                        scores[:, tokens] - scores[:, tokens].max(axis=1, keepdims=True)
                    )
                    out = weights @ values[tokens] / weights.sum(axis=1, keepdims=True)
                    errors.setdefault((name, share), []).append(relative_errors(out, wanted))
                    read.setdefault((name, share), []).append((len(tokens) + summaries) / len(keys))
    return [
        {
            "data": workload.data,
            "context": workload.context,
            "rule": name,
            "parameters": f"{100 * share:g} % of the tokens",
            "bytes_share": float(np.mean(read[name, share])),
            "error_p50": float(np.median(errors[name, share])),
            "error_p95": float(np.quantile(errors[name, share], 0.95)),
        }
        for name, share in errors
    ]
