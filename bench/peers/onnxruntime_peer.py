# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""onnxruntime's GroupQueryAttention, past and present in one buffer, as its generation loop runs it."""

import numpy as np

from contender import Contender, Provider, Unavailable

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper
except ImportError as error:
    onnxruntime, reason = None, str(error)

NUMPY = {"f32": np.float32, "f16": np.float16}


def version():
    """Of the package.  Raises Unavailable."""
    if onnxruntime is None:
        raise Unavailable(f"onnxruntime or onnx does not import: {reason}")
    return onnxruntime.__version__


def _model(shape, context, scalar):
    """One node: a query token with its key and value, behind a past of the whole context's buffer."""
    kind = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}[scalar]
    row = {"query": shape.n_query_heads * shape.dim, "key": shape.n_kv_heads * shape.dim}
    past = [1, shape.n_kv_heads, context, shape.dim]
    values = {
        "query": [1, 1, row["query"]],
        "key": [1, 1, row["key"]],
        "value": [1, 1, row["key"]],
        "past_key": past,
        "past_value": past,
    }
    inputs = [helper.make_tensor_value_info(name, kind, size) for name, size in values.items()]
    inputs.append(helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]))
    inputs.append(helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []))
    outputs = [
        helper.make_tensor_value_info("output", kind, [1, 1, row["query"]]),
        helper.make_tensor_value_info("present_key", kind, past),
        helper.make_tensor_value_info("present_value", kind, past),
    ]
    node = helper.make_node(
        "GroupQueryAttention",
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain="com.microsoft",
        num_heads=shape.n_query_heads,
        kv_num_heads=shape.n_kv_heads,
    )
    graph = helper.make_graph([node], "decode_step", inputs, outputs)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains)
    model.ir_version = 10
    return model.SerializeToString()


class OnnxruntimeProvider(Provider):
    """GroupQueryAttention with K and V as f32 or f16."""

    peer = "onnxruntime"

    def __init__(self, scalar):
        version()
        self.name = f"onnxruntime {scalar}"
        self._scalar = scalar
        self.formats = frozenset({scalar})

    def contenders(self, workload, n_threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        kind = NUMPY[self._scalar]
        shape, context = workload.shape, workload.context
        try:
            session = onnxruntime.InferenceSession(
                _model(shape, context, self._scalar), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises classes of its own
            raise Unavailable(f"GroupQueryAttention: {str(error).splitlines()[0]}") from error
        keys, values = workload.converted(self._scalar)
        binding = session.io_binding()

        def bind_input(name, array):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

        # The newest token comes in as this step's key and value and is written to where it stands anyway.
        bind_input("key", np.ascontiguousarray(keys[:, -1]).reshape(1, 1, -1))
        bind_input("value", np.ascontiguousarray(values[:, -1]).reshape(1, 1, -1))
        for name, array in (("key", keys), ("value", values)):
            shared = onnxruntime.OrtValue.ortvalue_from_numpy(array[None])
            binding.bind_ortvalue_input(f"past_{name}", shared)
            binding.bind_ortvalue_output(f"present_{name}", shared)
        bind_input("seqlens_k", np.array([context - 1], np.int32))
        bind_input("total_sequence_length", np.array(context, np.int32))
        answer = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.empty((1, 1, shape.n_query_heads * shape.dim), kind)
        )
        binding.bind_ortvalue_output("output", answer)
        probes = [
            onnxruntime.OrtValue.ortvalue_from_numpy(probe.astype(kind).reshape(1, 1, -1))
            for probe in workload.probes
        ]

        def run(probe):
            binding.bind_ortvalue_input("query", probes[probe])
            session.run_with_iobinding(binding)

        yield Contender(
            self.peer,
            "GroupQueryAttention",
            self._scalar,
            run,
            lambda: answer.numpy().reshape(workload.probes.shape[1:]),
            lambda: workload.kv_bytes(self._scalar),
        )
