"""One-node models of the ONNX Runtime ops that read integer weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dsv3export.graphs.quantise import IntWeight, pack, pack_zero_points

Arrays = dict[str, NDArray[np.generic]]


def _packed(tag: str, weight: IntWeight, bits: int, group: int | None) -> Arrays:
    scale, zero_point = weight.scale, weight.zero_point
    arrays: Arrays = {f"q{tag}": pack(weight.q, bits, group)}
    if zero_point is not None:
        packed = pack_zero_points(zero_point if group else zero_point.swapaxes(-1, -2), bits)
        arrays[f"zero{tag}"] = packed if group else packed.squeeze(-2)
    return arrays | {f"scale{tag}": scale if group else scale.squeeze(-1)}


def _run(node: onnx.NodeProto, weights: Arrays, inputs: Arrays) -> NDArray[np.float32]:
    signature = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()]
    graph = helper.make_graph(
        [node],
        "one_node",
        signature,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, inputs)[0]
    return result


def matmul_nbits(
    x: NDArray[np.float32], weight: IntWeight, bits: int, group: int, accuracy_level: int
) -> NDArray[np.float32]:
    """x [M, K] @ weight^T [K, N] by com.microsoft::MatMulNBits."""
    rows, width = weight.q.shape
    arrays = _packed("", weight, bits, group)
    arrays["q"] = arrays["q"].reshape(rows, -1, group * bits // 8)
    names = ["x", "q", "scale"] + (["zero"] if "zero" in arrays else [])
    attributes = {"K": width, "N": rows, "bits": bits, "block_size": group, "accuracy_level": accuracy_level}
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attributes)
    return _run(node, arrays, {"x": x})


def qmoe(
    x: NDArray[np.float32],
    scores: NDArray[np.float32],
    gate_up: IntWeight,
    down: IntWeight,
    k: int,
    bits: int,
    group: int | None,
) -> NDArray[np.float32]:
    """The k best experts of each row by com.microsoft::QMoE, weighed by their share of the scores [T, E]."""
    arrays = _packed("1", gate_up, bits, group) | _packed("2", down, bits, group)
    names = ["x", "scores", "q1", "scale1", "", "q2", "scale2", "", "", "", ""]
    names += [name if name in arrays else "" for name in ("zero1", "zero2")] + ["", "scores"]
    attributes = {
        "k": k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "expert_weight_bits": bits,
        "weights_prepacked": 0,
        "accuracy_level": 4,
    } | ({"block_size": group} if group else {})
    node = helper.make_node("QMoE", names, ["y"], domain="com.microsoft", **attributes)
    return _run(node, arrays, {"x": x, "scores": scores})
