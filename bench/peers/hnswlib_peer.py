# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""hnswlib: what a graph index over the keys of one KV head would cost to build and to ask."""

import time

import numpy as np

from contender import Unavailable
from workload import from_bf16

try:
    import hnswlib
except ImportError as error:
    hnswlib, reason = None, str(error)

LINKS, BUILD_WIDTH, QUERY_WIDTH, TOP = 16, 200, 200, 100


def version():
    """Of the package.  Raises Unavailable."""
    if hnswlib is None:
        raise Unavailable(f"hnswlib does not import: {reason}")
    from importlib.metadata import version as installed

    return installed("hnswlib")


def measure(workload, n_keys, n_threads):
    """Builds an inner-product graph over the first n_keys keys of KV head 0; asks every probe of its group for its
    top 100 on one thread. Recall is against exact search."""
    version()
    keys = from_bf16(workload.keys[0, :n_keys])
    queries = np.ascontiguousarray(
        workload.probes[:, : workload.shape.group_size].reshape(-1, workload.shape.dim)
    )
    graph = hnswlib.Index("ip", workload.shape.dim)
    graph.init_index(n_keys, M=LINKS, ef_construction=BUILD_WIDTH, random_seed=1)
    began = time.perf_counter()
    graph.add_items(keys, num_threads=n_threads)
    built = time.perf_counter() - began
    graph.set_ef(QUERY_WIDTH)
    exact = np.argpartition(-(queries @ keys.T), TOP, axis=1)[:, :TOP]
    seconds, found = [], 0
    for query, nearest in zip(queries, exact):
        began = time.perf_counter()
        labels, _ = graph.knn_query(query[None], TOP, num_threads=1)
        seconds.append(time.perf_counter() - began)
        found += len(np.intersect1d(labels[0], nearest))
    return {
        "data": workload.data,
        "dim": workload.shape.dim,
        "keys": n_keys,
        "threads": n_threads,
        "links": LINKS,
        "build_width": BUILD_WIDTH,
        "query_width": QUERY_WIDTH,
        "build_s": built,
        "query_p50_ms": float(np.median(seconds)) * 1e3,
        "recall": found / (TOP * len(queries)),
    }
