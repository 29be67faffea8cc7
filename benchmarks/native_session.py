"""Sessions of many products with the same x and weights of their own, by our kernel or by ONNX Runtime's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper

from dsv3export.runtime import cpu_kernels
from dsv3export.runtime.onnxruntime_arrays import ort_value

_NO_DATA = "none.bin"


class Subject(Enum):
    """Whose kernel."""

    NATIVE = "native"
    ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Projection:
    """A matrix [columns, depth] of `bits` in groups of `group` along its depth."""

    name: str
    bits: int
    group: int
    columns: int
    depth: int

    @property
    def groups(self) -> int:
        return -(-self.depth // self.group)

    @property
    def nbytes(self) -> int:
        """Of numbers and scales, as an engine stores them."""
        return self.columns * self.groups * (self.group * self.bits // 8 + 4)


def open_session(
    subject: Subject, projection: Projection, copies: int, threads: int, folder: Path
) -> ort.InferenceSession:
    """x [rows, depth] -> `copies` outputs [rows, columns]. The kernels pack weights of random bytes."""
    (folder / _NO_DATA).touch()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # As the runtime has it; else the threads of one subject would spin while the other's compute.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if subject is Subject.NATIVE:
        cpu_kernels.register(options, threads)
    generator = np.random.default_rng(0)
    numbers = (projection.columns, projection.groups, projection.group * projection.bits // 8)
    nodes, initializers, outputs, values = [], [], [], []
    for index in range(copies):
        for name, array in (
            (f"blocks_{index}", generator.integers(0, 256, numbers, np.uint8)),
            (f"scale_{index}", generator.uniform(0.01, 0.02, numbers[:2]).astype(np.float32)),
        ):
            values.append((name, ort_value(array)))
            initializers.append(_external(name, array.shape, array.nbytes, array.dtype == np.uint8))
        nodes.append(_node(subject, projection, index))
        outputs.append(helper.make_tensor_value_info(f"y_{index}", TensorProto.FLOAT, None))
    for name, value in values:
        options.add_initializer(name, value)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", projection.depth])
    imports = [
        helper.make_opsetid("", 21),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid(cpu_kernels.DOMAIN, cpu_kernels.DOMAIN_VERSION),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "products", [x], outputs, initializers), opset_imports=imports, ir_version=10
    )
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _node(subject: Subject, projection: Projection, index: int) -> NodeProto:
    inputs, outputs = ["x", f"blocks_{index}", f"scale_{index}"], [f"y_{index}"]
    shape = {"K": projection.depth, "N": projection.columns, "bits": projection.bits}
    if subject is Subject.NATIVE:
        return helper.make_node(
            "LinearInt", inputs, outputs, domain=cpu_kernels.DOMAIN, group=projection.group, activations="int8", **shape
        )
    return helper.make_node(
        "MatMulNBits", inputs, outputs, domain="com.microsoft", block_size=projection.group, accuracy_level=4, **shape
    )


def _external(name: str, shape: tuple[int, ...], nbytes: int, of_bytes: bool) -> TensorProto:
    """An initializer that the session takes from memory."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8 if of_bytes else TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", _NO_DATA), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
