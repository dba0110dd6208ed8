# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Keys, values and queries that every contender is given, and full attention's answers to them."""

import dataclasses
import json
import pathlib

import numpy as np

SCALAR_BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}
ORACLE_TOKENS = 32768  # tokens of which the oracle looks at a time


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one attention layer."""

    n_kv_heads: int
    group_size: int
    dim: int

    @property
    def n_query_heads(self):
        return self.n_kv_heads * self.group_size

    def __str__(self):
        return f"{self.n_kv_heads}x{self.group_size}x{self.dim}"


LLAMA = Shape(8, 4, 128)  # one layer of Llama-3.1-8B
SMALL_HEADS = Shape(8, 4, 64)  # one layer of Llama-3.2-1B


def aligned_empty(shape, kind):
    """An array at a multiple of 64 bytes: what the pickiest peer asks for, given to all."""
    n_bytes = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = np.empty(n_bytes + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + n_bytes].view(kind).reshape(shape)


def to_bf16(numbers):
    """Float32 to bf16 bits in uint16, nearest, ties to even; finite numbers."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    """bf16 bits in uint16 to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Workload:
    """One layer's data: K and V as bf16, which every other format is made from, and probes to ask."""

    def __init__(self, data, shape, keys, values, teaching, probes):
        """keys, values: uint16 [n_kv_heads, context, dim]; teaching: queries [any, n_query_heads, dim] that are not
        asked; probes: [n_probes, n_query_heads, dim]."""
        self.data, self.shape, self.keys, self.values = data, shape, keys, values
        self.teaching = np.ascontiguousarray(teaching)
        self.probes = from_bf16(to_bf16(probes))  # so that bf16 peers are asked the same
        self.context = keys.shape[1]
        self.scale = shape.dim**-0.5
        self._converted = {}
        self._expected = None

    @property
    def name(self):
        return f"{self.data}, {self.shape}, {self.context}"

    def kv_bytes(self, scalar):
        """Bytes of all K and V."""
        return 2 * self.keys.size * SCALAR_BYTES[scalar]

    def converted(self, form):
        """K and V in another format: f32 and f16 [head, token, dim]; f16_thd [token, head, dim]. Kept until release."""
        if form not in self._converted:
            self._converted[form] = tuple(
                self._convert(form, array) for array in (self.keys, self.values)
            )
        return self._converted[form]

    def format_bytes(self, form):
        """Memory that converted(form) takes."""
        return int(self.kv_bytes("f32" if form == "f32" else "f16"))

    def release(self, keep=frozenset()):
        """Frees converted formats."""
        self._converted = {form: kept for form, kept in self._converted.items() if form in keep}

    def _convert(self, form, array):
        heads, tokens, dim = array.shape
        if form == "f16_thd":
            out = aligned_empty((tokens, heads, dim), np.float16)
            for head in range(heads):
                out[:, head] = from_bf16(array[head])
            return out
        out = aligned_empty(array.shape, {"f32": np.float32, "f16": np.float16}[form])
        for head in range(heads):
            out[head] = from_bf16(array[head])
        return out

    def expected(self):
        """Full attention's answers to the probes, [n_probes, n_query_heads, dim]: logits in float, sums in double."""
        if self._expected is None:
            self._expected = np.empty(self.probes.shape)
            group = self.shape.group_size
            for head in range(self.shape.n_kv_heads):
                heads = slice(head * group, (head + 1) * group)
                rows = self.probes[:, heads].reshape(-1, self.shape.dim) * np.float32(self.scale)
                answer = full_attention(rows, self.keys[head], self.values[head])
                self._expected[:, heads] = answer.reshape(-1, group, self.shape.dim)
        return self._expected


def full_attention(rows, keys, values):
    """softmax(rows keysᵀ) values, for scaled query rows [n, dim] and bf16 keys and values [tokens, dim]."""
    largest = np.full(len(rows), -np.inf)
    denominator = np.zeros(len(rows))
    numerator = np.zeros((len(rows), values.shape[1]))
    for first in range(0, len(keys), ORACLE_TOKENS):
        logits = (rows @ from_bf16(keys[first : first + ORACLE_TOKENS]).T).astype(np.float64)
        seen = np.maximum(largest, logits.max(axis=1))
        weights = np.exp(logits - seen[:, None])
        shrink = np.exp(largest - seen)
        denominator = denominator * shrink + weights.sum(axis=1)
        part = weights.astype(np.float32) @ from_bf16(values[first : first + ORACLE_TOKENS])
        numerator = numerator * shrink[:, None] + part
        largest = seen
    return numerator / denominator[:, None]


def relative_errors(found, expected):
    """|found - expected| / |expected| of every head, [n_query_heads]."""
    off = np.linalg.norm(np.asarray(found, np.float64) - expected, axis=-1)
    return off / np.maximum(np.linalg.norm(expected, axis=-1), 1e-30)


def make_diffuse(library, shape, context, n_probes=16, n_teaching=4096, seed=1):
    """A workload of diffuse attention (bench/data/diffuse.hpp says how it is made)."""
    keys, values, queries = library.diffuse(shape, context, n_teaching + n_probes, seed)
    return Workload("diffuse", shape, keys, values, queries[:n_teaching], queries[n_teaching:])


def load_captured(prefix, layer, n_probes=16):
    """A layer that bound_accuracy --capture wrote. Even tokens' queries teach; odd ones of the second half and of the
    last 300 tokens (questions about needles) are asked."""
    sizes = json.loads(pathlib.Path(f"{prefix}.json").read_text(encoding="utf-8"))[layer]
    tokens, dim = sizes["n_tokens"], sizes["dim"]
    shape = Shape(sizes["n_kv_heads"], sizes["n_query_heads"] // sizes["n_kv_heads"], dim)

    def read(part, heads):
        return np.fromfile(f"{prefix}.{layer}.{part}", np.float32).reshape(tokens, heads, dim)

    queries = read("q", shape.n_query_heads)
    keys, values = (
        to_bf16(read(part, shape.n_kv_heads).transpose(1, 0, 2)) for part in ("k", "v")
    )
    half = n_probes // 2
    asked = np.concatenate(
        [
            np.linspace(tokens // 2, tokens - 400, n_probes - half).astype(int),
            np.linspace(tokens - 300, tokens - 3, half).astype(int),
        ]
    )
    # A query that is appended with its token teaches: an even token's in place of each odd one's.
    taught = queries.copy()
    taught[1::2] = taught[: tokens - tokens % 2 : 2][: len(taught[1::2])]
    workload = Workload(
        f"captured, layer {layer + 1}", shape, keys, values, taught, queries[asked | 1]
    )
    return workload


def mass_curve(workload, shares=(0.5, 0.9, 0.99)):
    """Top-p curve: tokens, heaviest first, that hold each share of a query's softmax mass; median over the probes, for
    every query head: {share: [n_query_heads]}."""
    counts = {share: [] for share in shares}
    group = workload.shape.group_size
    for head in range(workload.shape.n_query_heads):
        keys = from_bf16(workload.keys[head // group])
        logits = workload.probes[:, head] @ keys.T * np.float32(workload.scale)
        weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        held = np.cumsum(-np.sort(-weights, axis=1), axis=1)
        for share in shares:
            reached = (held < share * held[:, -1:]).sum(axis=1) + 1
            counts[share].append(int(np.median(reached)))
    return counts
