"""Runs the ONNX function of an op in a little model, by ONNX Runtime."""

from __future__ import annotations

import ctypes
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
from dsv3export.graphs.lower.onnxruntime.ops import Row, row
from dsv3export.graphs.opset import IR_VERSION, OPSET
from dsv3export.graphs.packing import PACKINGS
from dsv3export.plugins import DOMAIN, OPS
from dsv3export.plugins.dims import bind_dims, static_dims
from dsv3export.plugins.registry import Op, Port
from tests.plugins.cases import Case

Array = npt.NDArray[Any]
_HALVES = (NUMPY["BF16"], NUMPY["F16"])
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


def lowering(case: Case) -> Row:
    """How ONNX Runtime runs the call."""
    return row(case.op, any(array.dtype in _HALVES for array in case.inputs.values()))


def lowered_text(case: Case) -> str:
    """The op in ONNX Runtime's ops."""
    return lowering(case).function(known_dims(case), case.attributes)


def packed_inputs(case: Case) -> dict[str, Array]:
    """A call's inputs as the lowered function takes them, checked against the shapes that its row declares."""
    inputs, dims = dict(case.inputs), known_dims(case)
    for packed in lowering(case).packed_for(dims):
        if not set(packed.inputs) <= inputs.keys():
            continue  # optional inputs that this call leaves out
        array = PACKINGS[packed.packing]([inputs[name] for name in packed.inputs], {**dims, **packed.params})
        assert list(array.shape) == packed.shape(dims), f"{packed.port}: {array.shape}, not as declared"
        inputs[packed.port] = array
    inputs |= {name: _argument(name, inputs) for name in lowering(case).arguments}
    return {port: inputs[port] for port in lowering(case).inputs_for(dims) if port in inputs}


def _argument(name: str, inputs: Mapping[str, Array]) -> Array:
    """An argument of the layer kind that calls the op: of `cos` only the shape matters, [B, S, ...]."""
    assert name == "cos"
    leading = inputs["q_nope"].shape[:2] if "q_nope" in inputs else (1, len(inputs["x"]))
    return np.zeros((*leading, 1), np.float32)


def run_function(op: Op, text: str, inputs: Mapping[str, Array]) -> list[Array]:
    """The results of `text`, called by a dsv3 node; every dimension of the inputs is left open."""
    versions = {**_IMPORTS, "": max(OPSET, op.opset)}
    imports = ", ".join(f'"{domain}": {version}' for domain, version in versions.items())
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]>{text}')
    updated = dict(op.aliases)
    inputs = {port: _graph_bits(array) if port in updated.values() else array for port, array in inputs.items()}
    outputs = [port.name for port in op.outputs]
    node = onnx.helper.make_node(op.name, list(inputs), outputs, domain=DOMAIN)
    graph = onnx.helper.make_graph(
        [node],
        "call",
        [_info(name, array) for name, array in inputs.items()],
        [onnx.helper.make_tensor_value_info(port.name, _output_type(op, port, inputs), None) for port in op.outputs],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run_with_ort_values(outputs, {name: _ort_value(array) for name, array in inputs.items()})
    return [_from_ort(result) for result in results]


def uses_only_standard_ops(text: str) -> bool:
    """Whether a function needs nothing beyond the ONNX standard."""
    imports = f'"": {OPSET}, "{DOMAIN}": 1'
    function = onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: [{imports}]>{text}')
    return all(node.domain == "" for node in function.node)


def _graph_bits(array: Array) -> Array:
    """A cache as the lowered graph has it."""
    return array.view(np.int8) if array.dtype == NUMPY["F8_E4M3"] else array


def _output_type(op: Op, port: Port, inputs: Mapping[str, Array]) -> int:
    """That of the input which it updates, if it does."""
    if port.name not in dict(op.aliases):
        return _TYPES[port.dtypes[0]]
    dtype = inputs[dict(op.aliases)[port.name]].dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def _from_ort(value: onnxruntime.OrtValue) -> Array:
    """A copy; the bits of a float8 cache as such."""
    if value.data_type() == "tensor(bfloat16)":
        memory = (ctypes.c_uint16 * int(np.prod(value.shape()))).from_address(value.data_ptr())
        return np.array(memory, np.uint16).view(NUMPY["BF16"]).reshape(value.shape())
    array: Array = value.numpy()
    return array.view(NUMPY["F8_E4M3"]) if array.dtype == np.int8 else array


def _ort_value(array: Array) -> onnxruntime.OrtValue:
    if array.dtype in (NUMPY["F8_E4M3"], NUMPY["BF16"]):
        bits, kind = array.view(f"u{array.itemsize}"), onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype))
    return onnx.helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(array.ndim)])
