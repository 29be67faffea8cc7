"""A session of one op of ``dsv3.cpu``, as the runtime makes them: weights bound by address, in an ONNX function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dsv3export.runtime import cpu_kernels
from dsv3export.runtime.onnxruntime_arrays import onnx_type, ort_value

_NO_DATA = "none.bin"

Array = NDArray[Any]


class OneNode:
    """``OneNode("Linear", {"x": x}, {"weight": w}, {})(x=x)`` -> the outputs.

    Args:
        op: The op's name.
        inputs: Arrays of the dtypes and ranks that the node's first inputs have; None where an optional one is left
            out. Sizes may differ from call to call.
        weights: The other inputs, which become initializers; None where an optional one is left out.
        attributes: The node's.
        outputs: TensorProto.DataType of each output.
        threads: The session's.
        inlined: Whether the node stands in an ONNX function, from which ONNX Runtime inlines it.
        library: Another library than the product's, with its domain.
    """

    def __init__(
        self,
        op: str,
        inputs: Mapping[str, Array | None],
        weights: Mapping[str, Array | None],
        attributes: Mapping[str, int | float | str],
        *,
        folder: Path,
        outputs: Sequence[int] = (TensorProto.FLOAT,),
        threads: int = 2,
        inlined: bool = True,
        library: tuple[Path, str] | None = None,
    ) -> None:
        self.outputs = {f"out_{index}": dtype for index, dtype in enumerate(outputs)}
        domain = library[1] if library else cpu_kernels.DOMAIN
        names = [name if array is not None else "" for name, array in (inputs | dict(weights)).items()]
        bound = {name: array for name, array in weights.items() if array is not None}
        given = {name: array for name, array in inputs.items() if array is not None}
        model = _model((domain, op), names, given, bound, attributes, self.outputs, inlined)
        (folder / _NO_DATA).touch()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self.weights = {name: ort_value(np.ascontiguousarray(array)) for name, array in bound.items()}
        for name, value in self.weights.items():
            options.add_initializer(name, value)
        cpu_kernels.register(options, threads)
        if library:
            options.register_custom_ops_library(str(library[0]))
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, **inputs: Array) -> list[Array]:
        values = {name: ort_value(np.ascontiguousarray(array)) for name, array in inputs.items()}
        return [value.numpy() for value in self.session.run_with_ort_values(list(self.outputs), values)]


def _model(
    op: tuple[str, str],
    names: Sequence[str],
    inputs: Mapping[str, Array],
    weights: Mapping[str, Array],
    attributes: Mapping[str, int | float | str],
    outputs: Mapping[str, int],
    inlined: bool,
) -> bytes:
    domain, name = op
    imports = [helper.make_opsetid("", 24), helper.make_opsetid(domain, 1), helper.make_opsetid("test", 1)]
    node = helper.make_node(name, names, list(outputs), domain=domain, **attributes)
    functions = []
    if inlined:
        present = [name for name in names if name]
        # Without a node of ONNX's own that takes it, ONNX Runtime allows a function no float8 input.
        shapes = [helper.make_node("Shape", [name], [f"{name}_shape"]) for name in present]
        functions.append(helper.make_function("test", "Body", present, list(outputs), [*shapes, node], imports[:2]))
        node = helper.make_node("Body", present, list(outputs), domain="test")
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(name, onnx_type(array), [None] * array.ndim) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name, dtype in outputs.items()],
        [_external(name, array) for name, array in weights.items()],
    )
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=11).SerializeToString()


def _external(name: str, array: Array) -> TensorProto:
    """An initializer whose bytes are elsewhere: in no file, so that a session that does not take ours fails."""
    tensor = TensorProto(name=name, data_type=onnx_type(array), dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", _NO_DATA), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
