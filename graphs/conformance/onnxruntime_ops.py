"""One op on ONNX Runtime's CPU provider, lowered as in an engine, its weights packed and bound as initializers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from dsv3export.dtypes import NUMPY
from dsv3export.errors import BackendError
from dsv3export.graphs.conformance.calls import Array, OpCall
from dsv3export.graphs.conformance.one_op import weight_array
from dsv3export.graphs.conformance.reference import run_time_inputs
from dsv3export.graphs.lower.onnxruntime import lower
from dsv3export.graphs.lower.onnxruntime.native import has_kernel, lower_native
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.runtime.cpu_kernels import Description, register
from dsv3export.runtime.onnxruntime_arrays import graph_type, host_copy, ort_value
from dsv3export.runtime.onnxruntime_module import ort, reason

_FATAL_ONLY = 4


class OnnxRuntimeOps:
    """Implements `OpBackend`, with ONNX Runtime's own kernels or the native ones.

    Args:
        native: What the library of native kernels says of itself; None for ONNX Runtime's own.
    """

    int_activations: Literal["none", "int8"] = "int8"
    typed_caches, with_step = False, True
    why_not_run = ""

    def __init__(self, native: Description | None = None) -> None:
        self._native = native
        self.name = "onnxruntime" if native is None else "onnxruntime, native CPU kernels"
        self.version = str(ort.__version__) if native is None else f"{ort.__version__}, {native.isa}"

    def refusal(self, call: OpCall) -> str:
        """ONNX Runtime has a row, or a function in standard ops, for every op; the native kernels are fewer."""
        if self._native is None or has_kernel(call.op.name, call.precision in ("bf16", "f16")):
            return ""
        return "no native kernel: as with ONNX Runtime's own"

    def computes_in(self, call: OpCall) -> str:
        """On a CPU in float32; with integer weights, activations are rounded to int8.

        The native kernels round them as the ops' definitions do. The attention's have none: its steps round each row.
        """
        rounded = call.op.name.endswith("Int") if self._native is None else call.op.name == "MlaAttentionInt"
        return "int8" if rounded else "fp32"

    def build(self, call: OpCall, graph: GraphWithWeights) -> _Session:
        """See `OpBackend.build`."""
        lowered = lower(graph) if self._native is None else lower_native(graph)
        model = lowered.model.graph
        for value in [value for value in model.inputs if value.name in lowered.weights]:
            array = weight_array(lowered.weights[str(value.name)], call.weights)
            model.inputs.remove(value)
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=str(value.name))
            model.register_initializer(value)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        if self._native is not None:
            register(options, threads=1)
        data = ir.to_proto(lowered.model).SerializeToString()
        try:
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError(f"ONNX Runtime refuses {call}", got=reason(error)) from error
        return _Session(session, call)


class _Session:
    def __init__(self, session: ort.InferenceSession, call: OpCall) -> None:
        self._session, self._call = session, call

    def run(self) -> Mapping[str, Array]:
        """See `BuiltOp.run`."""
        wanted = {value.name for value in self._session.get_inputs()}
        arrays = {name: graph_type(a.copy()) for name, a in run_time_inputs(self._call).items() if name in wanted}
        inputs = {name: ort_value(array) for name, array in arrays.items()}
        names = [value.name for value in self._session.get_outputs()]
        try:
            values = self._session.run_with_ort_values(names, inputs)
        except Exception as error:  # as above
            raise BackendError(f"ONNX Runtime failed in {self._call}", got=reason(error)) from error
        results = {name: host_copy(value) for name, value in zip(names, values, strict=True)}
        # a float8 cache comes back as its bits
        return {
            name: array.view(NUMPY["F8_E4M3"]) if array.dtype == NUMPY["I8"] else array
            for name, array in results.items()
        }
