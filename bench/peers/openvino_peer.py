# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""OpenVINO's stateful scaled-dot-product attention: K and V stay in the plugin's own state, f16, as its generation
pipelines run it."""

import numpy as np

from contender import Contender, Provider, Unavailable

try:
    import openvino
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo
except ImportError as error:
    openvino, reason = None, str(error)


def version():
    """Of the package.  Raises Unavailable."""
    if openvino is None:
        raise Unavailable(f"openvino does not import: {reason}")
    return openvino.__version__.split("-")[0]


def _model(shape):
    """What the plugin turns into one stateful node: state, beam gather, concat, heads shared in groups, SDPA."""
    dynamic = openvino.Dimension()
    heads, group, dim = shape.n_kv_heads, shape.group_size, shape.dim
    query = ops.parameter([dynamic, heads * group, dynamic, dim], np.float32, name="query")
    beam = ops.parameter([dynamic], np.int32, name="beam")
    parameters, sinks, shared = [query, beam], [], []
    for name in ("key", "value"):
        new = ops.parameter([dynamic, heads, dynamic, dim], np.float32, name=name)
        info = VariableInfo()
        info.data_shape = openvino.PartialShape([dynamic, heads, dynamic, dim])
        info.data_type = openvino.Type.f32
        info.variable_id = name
        variable = Variable(info)
        empty = ops.constant(np.zeros((1, heads, 0, dim), np.float32))
        past = ops.read_value(empty, variable)
        kept = ops.gather(past, beam, ops.constant(0))
        whole = ops.concat([kept, new], 2)
        sinks.append(ops.assign(whole, variable))
        # Each KV head for the query heads of its group: unsqueeze, broadcast, reshape.
        spread = ops.broadcast(
            ops.unsqueeze(whole, ops.constant(2)),
            ops.constant(np.array([1, 1, group, 1, 1])),
            broadcast_spec="BIDIRECTIONAL",
        )
        shared.append(
            ops.reshape(spread, ops.constant(np.array([0, heads * group, -1, dim])), True)
        )
        parameters.append(new)
    answer = ops.scaled_dot_product_attention(query, *shared, causal=False)
    return openvino.Model([ops.result(answer)], sinks, parameters, "decode_step")


class OpenvinoProvider(Provider):
    """Stateful SDPA. Each step appends its token and attends, so that run i holds i tokens more than the context."""

    peer = "OpenVINO"
    name = "OpenVINO f16"
    formats = frozenset({"f32"})  # states are set as f32; the plugin keeps them as f16

    def __init__(self):
        version()

    def extra_bytes(self, workload):
        """The state, twice while it is set or grows, and the set value."""
        return int(2 * workload.kv_bytes("f16") + workload.kv_bytes("f32"))

    def contenders(self, workload, n_threads):
        shape = workload.shape
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "KV_CACHE_PRECISION": "f16",
        }
        try:
            compiled = core.compile_model(_model(shape), "CPU", settings)
            request = compiled.create_infer_request()
            states = {state.name: state for state in request.query_state()}
            arrays = dict(zip(("key", "value"), workload.converted("f32")))
            for name, array in arrays.items():  # all but the newest token
                states[name].state = openvino.Tensor(np.ascontiguousarray(array[None, :, :-1]))
        except Exception as error:  # openvino raises RuntimeErrors of its own
            raise Unavailable(f"stateful SDPA: {str(error).strip().splitlines()[-1]}") from error
        operations = compiled.get_runtime_model().get_ops()
        fused = any("kv_cache_precision" in operation.get_rt_info() for operation in operations)
        inputs = {
            "beam": np.zeros(1, np.int32),
            **{name: np.ascontiguousarray(array[None, :, -1:]) for name, array in arrays.items()},
        }
        probes = [
            np.ascontiguousarray(probe.reshape(1, shape.n_query_heads, 1, shape.dim))
            for probe in workload.probes
        ]
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array))

        def run(probe):
            request.set_tensor("query", openvino.Tensor(probes[probe], shared_memory=True))
            request.infer()

        yield Contender(
            self.peer,
            "stateful SDPA" if fused else "SDPA, state not fused",
            "f16",
            run,
            lambda: request.get_output_tensor(0).data.reshape(workload.probes.shape[1:]),
            lambda: workload.kv_bytes("f16"),
        )
