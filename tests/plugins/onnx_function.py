"""Runs the ONNX function of an op in a little model, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.helper
import onnx.parser
import onnxruntime

from dsv3export.dtypes import NUMPY
from dsv3export.graphs.lower.onnxruntime.ops import row
from dsv3export.graphs.opset import IR_VERSION, OPSET
from dsv3export.graphs.packing import PACKINGS
from dsv3export.plugins import DOMAIN, OPS
from dsv3export.plugins.dims import bind_dims, static_dims
from dsv3export.plugins.registry import Op
from tests.plugins.cases import Case

Array = npt.NDArray[Any]
_IMPORTS = {"": OPSET, DOMAIN: 1, "com.microsoft": 1}
_TYPES = {"float": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


def known_dims(case: Case) -> dict[str, int]:
    """What a traced graph knows about a call: all but batch, length, capacity and number of tokens."""
    op = OPS[case.op]
    run_time = {"B", "S", "T"}
    bound = bind_dims(op, [array.shape for array in case.inputs.values()])
    return {symbol: size for symbol, size in static_dims(op, bound).items() if symbol not in run_time}


def generic_text(case: Case) -> str:
    """The op in standard ONNX ops."""
    return OPS[case.op].function(known_dims(case), case.attributes)


def lowered_text(case: Case) -> str:
    """The op in ONNX Runtime's ops."""
    return row(case.op).function(known_dims(case), case.attributes)


def packed_inputs(case: Case) -> dict[str, Array]:
    """A call's inputs as the lowered function takes them, checked against the shapes that its row declares."""
    inputs, dims = dict(case.inputs), known_dims(case)
    for packed in row(case.op).packed:
        if not set(packed.inputs) <= inputs.keys():
            continue  # optional inputs that this call leaves out
        array = PACKINGS[packed.packing]([inputs[name] for name in packed.inputs], dims)
        assert list(array.shape) == packed.shape(dims), f"{packed.port}: {array.shape}, not as declared"
        inputs[packed.port] = array
    return {port: inputs[port] for port in row(case.op).inputs if port in inputs}


def run_function(op: Op, text: str, inputs: Mapping[str, Array]) -> list[Array]:
    """The results of `text`, called by a dsv3 node; every dimension of the inputs is left open."""
    imports = ", ".join(f'"{domain}": {version}' for domain, version in _IMPORTS.items())
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]>{text}')
    outputs = [port.name for port in op.outputs]
    node = onnx.helper.make_node(op.name, list(inputs), outputs, domain=DOMAIN)
    graph = onnx.helper.make_graph(
        [node],
        "call",
        [_info(name, array) for name, array in inputs.items()],
        [onnx.helper.make_tensor_value_info(port.name, _TYPES[port.dtypes[0]], None) for port in op.outputs],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in _IMPORTS.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run_with_ort_values(outputs, {name: _ort_value(array) for name, array in inputs.items()})
    return [result.numpy() for result in results]


def uses_only_standard_ops(text: str) -> bool:
    """Whether a function needs nothing beyond the ONNX standard."""
    imports = f'"": {OPSET}, "{DOMAIN}": 1'
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]>{text}')
    return all(node.domain == "" for node in function.node)


def _ort_value(array: Array) -> onnxruntime.OrtValue:
    if array.dtype in (NUMPY["F8_E4M3"], NUMPY["BF16"]):
        bits, kind = array.view(f"u{array.itemsize}"), onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype))
    return onnx.helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(array.ndim)])
