# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""PyTorch: scaled_dot_product_attention and what else its users write for one decode step."""

import numpy as np

from contender import Contender, Provider, Unavailable
from workload import to_bf16

try:
    import torch
    from torch.nn.functional import scaled_dot_product_attention
except (ImportError, OSError) as error:  # OSError: a shared library that its wheel needs
    torch, reason = None, str(error)


def version():
    """Of the package.  Raises Unavailable."""
    if torch is None:
        raise Unavailable(f"PyTorch does not import: {reason}")
    return torch.__version__


def _tensor(bits):
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def _folded(query, keys, values, shape):
    """The query heads of a group as rows of one attention over their KV head."""
    return scaled_dot_product_attention(
        query.view(1, shape.n_kv_heads, shape.group_size, shape.dim), keys[None], values[None]
    )


def _enable_gqa(query, keys, values, shape):
    """As most people write it."""
    return scaled_dot_product_attention(
        query.view(1, shape.n_query_heads, 1, shape.dim), keys[None], values[None], enable_gqa=True
    )


def _plain(query, keys, values, shape):
    """Two batched products and a softmax."""
    rows = query.view(shape.n_kv_heads, shape.group_size, shape.dim) * shape.dim**-0.5
    return torch.bmm(torch.softmax(torch.bmm(rows, keys.transpose(1, 2)), -1), values)


FORMS = {"SDPA, KV folded per group": _folded, "SDPA, enable_gqa": _enable_gqa, "matmul + softmax": _plain}


class TorchProvider(Provider):
    """All forms with K and V in one scalar: bf16 or f32."""

    peer = "PyTorch"

    def __init__(self, scalar):
        version()
        self.name = f"PyTorch {scalar}"
        self._scalar = scalar
        self.formats = frozenset() if scalar == "bf16" else frozenset({scalar})

    def contenders(self, workload, n_threads):
        torch.set_num_threads(n_threads)
        if self._scalar == "bf16":
            keys, values = _tensor(workload.keys), _tensor(workload.values)
            probes = _tensor(to_bf16(workload.probes))
        else:
            keys, values = map(torch.from_numpy, workload.converted("f32"))
            probes = torch.from_numpy(workload.probes)
        for name, form in FORMS.items():
            answer = [None]

            @torch.inference_mode()
            def run(probe, form=form, answer=answer):
                answer[0] = form(probes[probe], keys, values, workload.shape)

            yield Contender(
                self.peer,
                name,
                self._scalar,
                run,
                lambda answer=answer: answer[0].float().numpy().reshape(workload.probes.shape[1:]),
                lambda: workload.kv_bytes(self._scalar),
            )


def causal_prefill(workload, queries, n_threads):
    """A function that runs bf16 causal attention of all tokens [n, n_query_heads, dim], in PyTorch's fastest form, and
    returns the output as float [n, n_query_heads, dim]."""
    version()
    torch.set_num_threads(n_threads)
    group = workload.shape.group_size
    keys, values = _tensor(workload.keys)[None], _tensor(workload.values)[None]
    rows = _tensor(to_bf16(queries.transpose(1, 0, 2)))[None]

    @torch.inference_mode()
    def run(repeated=False):
        """repeated: KV heads copied for each query head first, instead of enable_gqa."""
        if repeated:
            k, v = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            return scaled_dot_product_attention(rows, k, v, is_causal=True)
        return scaled_dot_product_attention(rows, keys, values, is_causal=True, enable_gqa=True)

    return run
