# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""ggml's flash_attn_ext through ctypes, on the shared libraries that run.sh builds."""

import ctypes
import os
import pathlib

import numpy as np

from contender import Contender, Provider, Unavailable
from workload import aligned_empty, from_bf16

F32, F16, Q8_0 = 0, 1, 8  # enum ggml_type
Q8_BLOCK, Q8_BLOCK_BYTES = 32, 34

_library = None


class _InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


def _load():
    """Both libraries as one namespace.  Raises Unavailable."""
    global _library
    if _library is not None:
        return _library
    folder = os.environ.get("WAVEKV_GGML")
    if not folder:
        raise Unavailable("its libraries were not built (see the lines of run.sh above)")
    try:
        base, cpu = (
            ctypes.CDLL(str(pathlib.Path(folder) / name), mode=ctypes.RTLD_GLOBAL)
            for name in ("libggml-base.so", "libggml-cpu.so")
        )
    except OSError as error:
        raise Unavailable(str(error)) from error
    pointer, size, i64, i32, f32 = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_float,
    )

    class Namespace:
        """Functions with their signatures."""

    for library, name, result, arguments in (
        (base, "ggml_init", pointer, [_InitParams]),
        (base, "ggml_free", None, [pointer]),
        (base, "ggml_new_tensor_4d", pointer, [pointer, i32, i64, i64, i64, i64]),
        (base, "ggml_view_4d", pointer, [pointer, pointer, *[i64] * 4, *[size] * 4]),
        (base, "ggml_flash_attn_ext", pointer, [*[pointer] * 5, *[f32] * 3]),
        (base, "ggml_new_graph", pointer, [pointer]),
        (base, "ggml_build_forward_expand", None, [pointer, pointer]),
        (base, "ggml_quantize_chunk", size, [i32, pointer, pointer, i64, i64, i64, pointer]),
        (base, "ggml_backend_graph_compute", i32, [pointer, pointer]),
        (base, "ggml_backend_free", None, [pointer]),
        (base, "ggml_backend_buffer_free", None, [pointer]),
        (base, "ggml_backend_cpu_buffer_from_ptr", pointer, [pointer, size]),
        (base, "ggml_backend_tensor_alloc", i32, [pointer, pointer, pointer]),
        (base, "ggml_version", ctypes.c_char_p, []),
        (cpu, "ggml_backend_cpu_init", pointer, []),
        (cpu, "ggml_backend_cpu_set_n_threads", None, [pointer, i32]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        setattr(Namespace, name, staticmethod(function))
    _library = Namespace
    return _library


def version():
    """Of the library.  Raises Unavailable."""
    return _load().ggml_version().decode()


class _Step:
    """One flash_attn_ext node over memory of the caller's, and the thread team that runs it."""

    def __init__(self, workload, kind, keys, values, n_threads, tokens_outside):
        """keys, values: arrays in ggml's format; tokens_outside: [token, head, dim], else [head, token, dim]."""
        self._ggml = ggml = _load()
        self._shape = shape = workload.shape
        self._arrays, self._buffers = [], []
        self._context = ggml.ggml_init(_InitParams(1 << 20, None, True))
        self._backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self._backend, n_threads)
        self._query = aligned_empty((shape.n_query_heads, shape.dim), np.float32)
        self._out = aligned_empty((shape.n_query_heads, shape.dim), np.float32)
        query = self._tensor(F32, (shape.dim, 1, shape.n_query_heads), self._query)
        cached = [
            self._cached(kind, array, workload.context, tokens_outside)
            for array in (keys, values)
        ]
        node = ggml.ggml_flash_attn_ext(
            self._context, query, *cached, None, workload.scale, 0.0, 0.0
        )
        self._place(node, self._out)
        self._graph = ggml.ggml_new_graph(self._context)
        ggml.ggml_build_forward_expand(self._graph, node)
        self._probes = workload.probes

    def _place(self, tensor, array):
        buffer = self._ggml.ggml_backend_cpu_buffer_from_ptr(array.ctypes.data, array.nbytes)
        self._ggml.ggml_backend_tensor_alloc(buffer, tensor, array.ctypes.data)
        self._buffers.append(buffer)
        self._arrays.append(array)

    def _tensor(self, kind, extents, array):
        tensor = self._ggml.ggml_new_tensor_4d(self._context, kind, *extents, 1)
        self._place(tensor, array)
        return tensor

    def _cached(self, kind, array, context, tokens_outside):
        """K or V as [dim, token, head], of memory laid out either way."""
        shape = self._shape
        if not tokens_outside:
            return self._tensor(kind, (shape.dim, context, shape.n_kv_heads), array)
        row = array.nbytes // (context * shape.n_kv_heads)  # bytes of one head's row
        whole = self._tensor(kind, (shape.dim, shape.n_kv_heads, context), array)
        return self._ggml.ggml_view_4d(
            self._context,
            whole,
            *(shape.dim, context, shape.n_kv_heads, 1),
            *(row * shape.n_kv_heads, row, row * shape.n_kv_heads * context),
            0,
        )

    def run(self, probe):
        self._query[:] = self._probes[probe]
        if self._ggml.ggml_backend_graph_compute(self._backend, self._graph) != 0:
            raise RuntimeError("ggml_backend_graph_compute failed")

    def output(self):
        return self._out

    def close(self):
        self._ggml.ggml_backend_free(self._backend)
        for buffer in self._buffers:
            self._ggml.ggml_backend_buffer_free(buffer)
        self._ggml.ggml_free(self._context)
        self._arrays = self._buffers = ()


def _quantized(array):
    """bf16 bits [..., dim] as q8_0 blocks."""
    ggml = _load()
    heads, tokens, dim = array.shape
    out = aligned_empty((heads, tokens, dim // Q8_BLOCK * Q8_BLOCK_BYTES), np.uint8)
    for head in range(heads):
        rows = from_bf16(array[head])
        ggml.ggml_quantize_chunk(
            Q8_0, rows.ctypes.data, out[head].ctypes.data, 0, tokens, dim, None
        )
    return out


LAYOUTS = {
    ("f16", False): "flash_attn_ext, contiguous per head",
    ("f16", True): "flash_attn_ext, llama.cpp's cache layout",
    ("q8_0", False): "flash_attn_ext, contiguous per head",
    ("q8_0", True): "flash_attn_ext, llama.cpp's cache layout",
}


class GgmlProvider(Provider):
    """flash_attn_ext on K and V of one scalar (f16, q8_0) in one layout."""

    peer = "ggml"

    def __init__(self, scalar, tokens_outside):
        version()
        self._scalar, self._tokens_outside = scalar, tokens_outside
        self.name = f"ggml {scalar}, {LAYOUTS[scalar, tokens_outside]}"
        self._quantized = None
        if scalar == "f16":
            self.formats = frozenset({"f16_thd" if tokens_outside else "f16"})

    def extra_bytes(self, workload):
        return 0 if self._scalar == "f16" else int(workload.kv_bytes("q8_0")) * 2

    def contenders(self, workload, n_threads):
        if self._scalar == "f16":
            kind = F16
            keys, values = workload.converted(*self.formats)
        else:
            kind = Q8_0
            if self._quantized is None:
                made = [_quantized(array) for array in (workload.keys, workload.values)]
                if self._tokens_outside:
                    made = [_transposed(array) for array in made]
                self._quantized = made
            keys, values = self._quantized
        step = _Step(workload, kind, keys, values, n_threads, self._tokens_outside)
        yield Contender(
            self.peer,
            LAYOUTS[self._scalar, self._tokens_outside],
            self._scalar,
            step.run,
            step.output,
            lambda: workload.kv_bytes(self._scalar),
            close=step.close,
        )

    def close(self):
        self._quantized = None


def _transposed(array):
    out = aligned_empty((array.shape[1], array.shape[0], array.shape[2]), array.dtype)
    out[:] = array.transpose(1, 0, 2)
    return out
