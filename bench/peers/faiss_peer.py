# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""faiss's spherical k-means against wavekv's clusterer: the same points, clusters and iterations, one thread, in turns."""

import time

import numpy as np

from contender import Unavailable
from workload import from_bf16

try:
    import faiss
except ImportError as error:
    faiss, reason = None, str(error)

N_TOKENS, N_CLUSTERS, N_ITERATIONS = 8192, 512, 10


def version():
    """Of the package.  Raises Unavailable."""
    if faiss is None:
        raise Unavailable(f"faiss does not import: {reason}")
    return faiss.__version__


def mean_cosine(keys, assignment):
    """Mean cosine between a key and the sum of the keys of its cluster."""
    sums = np.zeros((assignment.max() + 1, keys.shape[1]))
    np.add.at(sums, assignment, keys)
    mine = sums[assignment]
    norms = np.linalg.norm(keys, axis=1) * np.linalg.norm(mine, axis=1)
    return float(np.mean((keys * mine).sum(axis=1) / np.maximum(norms, 1e-30)))


def _train(keys):
    index = faiss.IndexFlatIP(keys.shape[1])
    clustering = faiss.Clustering(keys.shape[1], N_CLUSTERS)
    clustering.niter, clustering.spherical = N_ITERATIONS, True
    clustering.min_points_per_centroid, clustering.seed = 1, 1
    clustering.train(keys, index)
    return index  # holds the last centroids


def data_sets(workloads):
    """Named keys [8192, dim]: normal ones, and the first segment of one head of each workload that has so many."""
    yield "normal", np.random.default_rng(1).standard_normal((N_TOKENS, 128), np.float32)
    for workload in workloads:
        if workload.context >= N_TOKENS:
            yield f"{workload.data}, dim {workload.shape.dim}", from_bf16(workload.keys[0, :N_TOKENS])


def compare(library, named_keys, n_runs):
    """One row for each data set: median and least ms, and mean cosine, of both (of wavekv alone without faiss)."""
    rows = []
    if faiss is not None:
        faiss.omp_set_num_threads(1)
    for name, keys in named_keys:
        keys = np.ascontiguousarray(keys, np.float32)
        runners = {"wavekv": lambda keys=keys: library.cluster(keys, N_CLUSTERS)}
        if faiss is not None:
            runners["faiss"] = lambda keys=keys: _train(keys)
        seconds = {peer: [] for peer in runners}
        for runner in runners.values():
            runner()
        for _ in range(n_runs):
            for peer, runner in runners.items():
                library.sweep()
                began = time.perf_counter()
                made = runner()
                seconds[peer].append(time.perf_counter() - began)
                if peer == "faiss":  # one more assignment, untimed: training keeps none
                    made = made.search(keys, 1)[1][:, 0]
                if len(seconds[peer]) == n_runs:
                    rows.append(
                        {
                            "peer": peer,
                            "data": name,
                            "tokens": len(keys),
                            "dim": keys.shape[1],
                            "clusters": N_CLUSTERS,
                            "iterations": N_ITERATIONS,
                            "runs": n_runs,
                            "median_ms": float(np.median(seconds[peer])) * 1e3,
                            "min_ms": min(seconds[peer]) * 1e3,
                            "mean_cosine": mean_cosine(keys, made),
                        }
                    )
    return rows
