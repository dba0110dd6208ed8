# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""faiss's spherical k-means against wavekv's clusterer: the same points, clusters and iterations, one thread, in turns.

An iteration is one assignment of all points. Ours ends with an assignment; faiss's training ends with centroids, so it
trains one iteration less and searches once more, and both have assigned every point as often when the clock stops."""

import time

import numpy as np

from contender import Unavailable
from workload import from_bf16

try:
    import faiss
except ImportError as error:
    faiss, reason = None, str(error)

N_TOKENS, N_CLUSTERS, N_ITERATIONS = 8192, 512, 10
N_SETS = 4  # of keys, at most, for each kind of data


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


def _cluster(keys):
    """The cluster of every key."""
    index = faiss.IndexFlatIP(keys.shape[1])
    clustering = faiss.Clustering(keys.shape[1], N_CLUSTERS)
    clustering.niter, clustering.spherical = N_ITERATIONS - 1, True
    clustering.min_points_per_centroid, clustering.seed = 1, 1
    clustering.train(keys, index)
    return index.search(keys, 1)[1][:, 0]


def data_sets(workloads):
    """Named lists of keys [8192, dim]: normal ones, and the first segment of some heads of each workload that has so
    many. Several, because the mean cosine of one set hangs on the seeds in its fourth digit."""
    yield "normal", [
        np.random.default_rng(seed).standard_normal((N_TOKENS, 128), np.float32) for seed in range(N_SETS)
    ]
    for workload in workloads:
        if workload.context >= N_TOKENS:
            yield f"{workload.data}, dim {workload.shape.dim}", [
                from_bf16(keys[:N_TOKENS]) for keys in workload.keys[:N_SETS]
            ]


def compare(library, named_keys, n_runs):
    """One row for each data set: median and least ms, and mean cosine, of both (of wavekv alone without faiss)."""
    rows = []
    if faiss is not None:
        faiss.omp_set_num_threads(1)
    runners = {"wavekv": lambda keys: library.cluster(keys, N_CLUSTERS)}
    if faiss is not None:
        runners["faiss"] = _cluster
    for name, sets in named_keys:
        sets = [np.ascontiguousarray(keys, np.float32) for keys in sets]
        seconds = {peer: [] for peer in runners}
        cosines = {
            peer: [mean_cosine(keys, runner(keys)) for keys in sets] for peer, runner in runners.items()
        }
        for run in range(n_runs):
            for peer, runner in runners.items():
                library.sweep()
                began = time.perf_counter()
                runner(sets[run % len(sets)])
                seconds[peer].append(time.perf_counter() - began)
        for peer in runners:
            rows.append(
                {
                    "peer": peer,
                    "data": name,
                    "tokens": N_TOKENS,
                    "dim": sets[0].shape[1],
                    "clusters": N_CLUSTERS,
                    "iterations": N_ITERATIONS,
                    "sets": len(sets),
                    "runs": n_runs,
                    "median_ms": float(np.median(seconds[peer])) * 1e3,
                    "min_ms": min(seconds[peer]) * 1e3,
                    "mean_cosine": float(np.mean(cosines[peer])),
                }
            )
    return rows
