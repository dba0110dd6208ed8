# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""wavekv through the C interface of wavekv_peer.cpp."""

import ctypes
import dataclasses
import time

import numpy as np

from contender import Contender, Provider
from words import DEFAULT_INDEX
from workload import Shape, aligned_empty

LEVELS = {"<16>": 1, "<16,128>": 2, "<16,128,1024>": 3}
RULES = {"exact": 0, "fixed_budget": 1, "error_bound": 2, "verified_bound": 3}
SEGMENT = 8192  # tokens appended at a time, as an engine that prefills in chunks does
TAUGHT = 4096  # queries of so many tokens teach the query metric


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("n_layers", "n_kv_heads", "group_size", "dim")]


class _Bound(ctypes.Structure):
    _fields_ = [("rule", ctypes.c_int), ("epsilon", ctypes.c_float), ("delta", ctypes.c_float)]


class _Step(ctypes.Structure):
    _fields_ = [
        ("groups", ctypes.c_uint64),
        ("capped", ctypes.c_uint64),
        ("tokens_held", ctypes.c_uint64),
        ("tokens_read", ctypes.c_uint64),
        ("bytes_read", ctypes.c_uint64),
        ("predicted_error", ctypes.c_float),
        ("sampled_error", ctypes.c_float),
    ]


class WavekvError(RuntimeError):
    """Something that the library threw."""


def _pointer(array):
    """The address of a contiguous array, or None."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


class Library:
    """The loaded library; one for the process."""

    def __init__(self, path):
        self._c = ctypes.CDLL(str(path))
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        signatures = {
            "error": (ctypes.c_char_p, []),
            "compiler": (ctypes.c_char_p, []),
            "set_threads": (None, [size]),
            "sweep": (None, []),
            "read_bandwidth": (ctypes.c_double, []),
            "diffuse": (
                ctypes.c_int,
                [pointer, ctypes.c_uint64, size, pointer, pointer, size, pointer],
            ),
            "create": (pointer, [pointer, ctypes.c_int]),
            "destroy": (None, [pointer]),
            "append": (ctypes.c_int, [pointer, size, pointer, pointer, size, size, size, pointer]),
            "seal": (ctypes.c_int, [pointer]),
            "truncate": (ctypes.c_int, [pointer, size]),
            "prefill": (
                ctypes.c_int,
                [pointer, size, pointer, pointer, size, size, size, pointer, pointer],
            ),
            "attend": (ctypes.c_int, [pointer, size, pointer, pointer, pointer, pointer]),
            "memory": (ctypes.c_int, [pointer, pointer, pointer, pointer]),
            "segments": (size, [pointer]),
            "decode": (
                ctypes.c_int,
                [pointer, pointer, pointer, size, size, size, pointer, size, pointer],
            ),
            "cluster": (size, [pointer, size, size, size, pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self._c, "wavekv_peer_" + name)
            function.restype, function.argtypes = result, arguments
            setattr(self, "_" + name, function)

    def _check(self, failed):
        if failed:
            raise WavekvError(self._error().decode())

    def compiler(self):
        """Name and version of the compiler that built the library."""
        return self._compiler().decode()

    def set_threads(self, n):
        """How many threads everything below uses."""
        self._set_threads(n)

    def sweep(self):
        """Empties the caches of what was used before."""
        self._sweep()

    def read_bandwidth(self):
        """Bytes a second of one sequential read of 128 MB."""
        return self._read_bandwidth()

    def diffuse(self, shape, n_tokens, n_queries, seed=1):
        """Keys and values [n_kv_heads, n_tokens, dim] as bf16 in uint16, queries [n_queries, n_query_heads, dim]."""
        size = (shape.n_kv_heads, n_tokens, shape.dim)
        keys, values = aligned_empty(size, np.uint16), aligned_empty(size, np.uint16)
        queries = np.empty((n_queries, shape.n_query_heads, shape.dim), np.float32)
        self._check(
            self._diffuse(
                ctypes.byref(_c_shape(shape)),
                seed,
                n_tokens,
                _pointer(keys),
                _pointer(values),
                n_queries,
                _pointer(queries),
            )
        )
        return keys, values, queries

    def cluster(self, keys, n_clusters):
        """Cluster of each key [n] by wavekv's spherical k-means, 10 iterations, one thread."""
        assignment = np.empty(len(keys), np.uint32)
        made = self._cluster(
            _pointer(keys), len(keys), keys.shape[1], n_clusters, _pointer(assignment)
        )
        self._check(made == 0)
        return assignment


def _c_shape(shape, n_layers=1):
    return _Shape(n_layers, shape.n_kv_heads, shape.group_size, shape.dim)


@dataclasses.dataclass(frozen=True)
class Bound:
    """An estimation bound; None stands for its default."""

    rule: str
    epsilon: float | None = None
    delta: float | None = None


class Cache:
    """One sequence in a wavekv cache of one or more layers."""

    def __init__(self, library: Library, shape: Shape, index=DEFAULT_INDEX, n_layers=1):
        self._library, self.shape, self.n_layers = library, shape, n_layers
        self._handle = library._create(
            ctypes.byref(_c_shape(shape, n_layers)), LEVELS[index]
        )
        library._check(not self._handle)

    def close(self):
        """Frees it; nothing else may be called afterwards."""
        self._library._destroy(self._handle)
        self._handle = None

    def append(self, keys, values, first, n, queries=None, layer=0):
        """Appends tokens [first, first + n) of keys and values [n_kv_heads, any, dim]."""
        self._library._check(
            self._library._append(
                self._handle,
                layer,
                _pointer(keys),
                _pointer(values),
                keys.shape[1],
                first,
                n,
                _pointer(queries),
            )
        )

    def seal(self):
        """Seals what waits in the tail."""
        self._library._check(self._library._seal(self._handle))

    def truncate(self, n):
        """Keeps the first n tokens."""
        self._library._check(self._library._truncate(self._handle, n))

    def load(self, workload, n_tokens=None):
        """Appends the first n_tokens of a workload to every layer and seals; returns the seconds that took."""
        n_tokens = workload.context if n_tokens is None else n_tokens
        began = time.perf_counter()
        for layer in range(self.n_layers):
            n_taught = min(TAUGHT, n_tokens, len(workload.teaching))
            self.append(
                workload.keys, workload.values, 0, n_taught, workload.teaching[:n_taught], layer
            )
            for first in range(n_taught, n_tokens, SEGMENT):
                n = min(SEGMENT, n_tokens - first)
                self.append(workload.keys, workload.values, first, n, layer=layer)
        self.seal()
        return time.perf_counter() - began

    def load_rest(self, workload, n_held):
        """The tokens behind the first n_held ones, in layer 0; seconds."""
        began = time.perf_counter()
        for first in range(n_held, workload.context, SEGMENT):
            n = min(SEGMENT, workload.context - first)
            self.append(workload.keys, workload.values, first, n)
        self.seal()
        return time.perf_counter() - began

    def prefill(self, keys, values, first, queries, out):
        """Exact causal attention of tokens [first, first + len(queries)), then append."""
        self._library._check(
            self._library._prefill(
                self._handle,
                0,
                _pointer(keys),
                _pointer(values),
                keys.shape[1],
                first,
                len(queries),
                _pointer(queries),
                _pointer(out),
            )
        )

    def asker(self, bound: Bound, out):
        """A function of a query [n_query_heads, dim] that attends into out and returns what the step did."""
        given = _Bound(
            RULES[bound.rule],
            -1 if bound.epsilon is None else bound.epsilon,
            -1 if bound.delta is None else bound.delta,
        )
        step = _Step()
        given_at, step_at, out_at = ctypes.byref(given), ctypes.byref(step), _pointer(out)

        def ask(query):
            failed = self._library._attend(
                self._handle, 0, _pointer(query), given_at, out_at, step_at
            )
            self._library._check(failed)
            return step

        return ask

    def memory(self):
        """Bytes of K and V, of the index, and of what is learnt of queries and clusters."""
        sizes = [ctypes.c_uint64() for _ in range(3)]
        self._library._check(self._library._memory(self._handle, *map(ctypes.byref, sizes)))
        return tuple(size.value for size in sizes)

    def segments(self):
        """Sealed segments of all layers."""
        return self._library._segments(self._handle)

    def decode(self, workload, first, n_steps):
        """Appends tokens [first, first + n_steps) one by one, attending after each; seconds of each step."""
        seconds = np.empty(n_steps)
        self._library._check(
            self._library._decode(
                self._handle,
                _pointer(workload.keys),
                _pointer(workload.values),
                workload.keys.shape[1],
                first,
                n_steps,
                _pointer(workload.teaching),
                len(workload.teaching),
                _pointer(seconds),
            )
        )
        return seconds


class _Row:
    """One bound on one cache, as interleave.py runs it."""

    def __init__(self, cache, bound, probes):
        self._out = np.empty(probes.shape[1:], np.float32)
        self._ask, self._probes = cache.asker(bound, self._out), probes
        self._steps = self._bytes = self._groups = self._capped = 0

    def run(self, probe):
        self._step = self._ask(self._probes[probe])

    def output(self):
        self._steps += 1
        self._bytes += self._step.bytes_read
        self._groups += self._step.groups
        self._capped += self._step.capped
        return self._out

    def bytes_read(self):
        return self._bytes / self._steps

    def capped(self):
        return self._capped / self._groups


class WavekvProvider(Provider):
    """wavekv with one index and all its bounds."""

    peer = "wavekv"
    formats = frozenset()

    def __init__(self, library, index, rules=tuple(RULES)):
        self.name = f"wavekv {index}"
        self._library, self._index, self._rules = library, index, rules
        self._cache = None
        self.build = None

    def extra_bytes(self, workload):
        """Its own copy of K and V with the index, and what building takes beside it."""
        return int(1.1 * workload.kv_bytes("bf16")) + (64 << 20)

    def contenders(self, workload, n_threads):
        if self._cache is None:
            self._cache = Cache(self._library, workload.shape, self._index)
            seconds = self._cache.load(workload)
            kv, index, learnt = self._cache.memory()
            self.build = {
                "index": self._index,
                "threads": n_threads,
                "seconds": seconds,
                "kv_bytes": kv,
                "index_bytes": index,
                "learnt_bytes": learnt,
            }
        for rule in self._rules:
            row = _Row(self._cache, Bound(rule), workload.probes)
            yield Contender(
                "wavekv",
                f"{rule}, {self._index}",
                "bf16",
                row.run,
                row.output,
                row.bytes_read,
                extra=lambda row=row: {"capped": row.capped()},
            )

    def close(self):
        if self._cache is not None:
            self._cache.close()
            self._cache = None
