"""An engine for CUDA made runnable on the CPU: what is bfloat16 or float16 there becomes float32, rounded as there.

ONNX Runtime's CPU provider has no bfloat16 kernels. So each product runs in float32 on rounded inputs, and its result
is rounded: what a GPU does that accumulates in float32. Inside an experts' kernel nothing is rounded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx.inliner
from onnx import GraphProto, NodeProto, TensorProto, helper

from dsv3export.plugins.linear_fp8_block.matmul import BLOCK

NARROW = (TensorProto.BFLOAT16, TensorProto.FLOAT16)
# Ops whose result a GPU rounds to the narrow type; the others only move numbers.
ROUNDING = {"FusedMatMul", "MatMul", "MatMulNBits", "MatMulBlockQuantizedFp8Weight", "MoE", "QMoE"}
FLOAT = TensorProto.FLOAT


def rounded_engine(engine: Path, out: Path) -> Path:
    """Writes to `out` a copy of `engine` that the CPU provider runs."""
    shutil.copytree(engine, out)
    graph = out / "graph" / "trunk.onnx"
    model = onnx.inliner.inline_local_functions(onnx.load(graph, load_external_data=False))
    _Widener().graph(model.graph)
    graph.write_bytes(model.SerializeToString())
    manifest = json.loads((out / "engine.json").read_text())
    manifest["backend"]["providers"] = ["cpu"]
    data = graph.read_bytes()
    manifest["graphs"]["trunk"] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (out / "engine.json").write_text(json.dumps(manifest))
    return out


class _Widener:
    """Rewrites a graph and its branches; remembers which values are float32 now, and what they are rounded to."""

    def __init__(self) -> None:
        self.narrow: dict[str, int] = {}  # value -> the type that it has on the GPU
        self.widened: dict[str, str] = {}  # initializer -> its float32 value

    def graph(self, graph: GraphProto) -> None:
        nodes: list[NodeProto] = []
        for tensor in graph.initializer:
            if tensor.data_type in NARROW and tensor.name != "model.embed_tokens.weight":
                self.narrow[tensor.name] = tensor.data_type
                self.widened[tensor.name] = f"{tensor.name}.wide"
                nodes.append(helper.make_node("Cast", [tensor.name], [self.widened[tensor.name]], to=FLOAT))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self.graph(attribute.g)
            nodes += self.node(node)
        del graph.node[:]
        graph.node.extend(nodes)

    def node(self, node: NodeProto) -> Iterable[NodeProto]:
        cast_to = self.cast_target(node)
        seen = [self.narrow[name] for name in node.input if name in self.narrow]
        node.input[:] = [self.widened.get(name, name) for name in node.input]
        if cast_to in NARROW:
            return self.rounded(node.input[0], node.output[0], cast_to)
        if cast_to is not None or not seen:
            return [node]
        narrow = seen[0]
        if node.op_type not in ROUNDING:
            self.narrow |= dict.fromkeys(node.output, narrow)
            return [node]
        result = node.output[0]
        node.output[0] = f"{result}.exact"
        return [*_known(node), *self.rounded(node.output[0], result, narrow)]

    def cast_target(self, node: NodeProto) -> int | None:
        """What a cast casts to; None for other ops."""
        if node.op_type == "CastLike":
            target = self.narrow.get(node.input[1], FLOAT)
            node.op_type = "Cast"
            del node.input[1]
            node.attribute.append(helper.make_attribute("to", target))
            return target
        return next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)

    def rounded(self, value: str, result: str, narrow: int) -> list[NodeProto]:
        self.narrow[result] = narrow
        return [
            helper.make_node("Cast", [value], [f"{result}.stored"], to=narrow),
            helper.make_node("Cast", [f"{result}.stored"], [result], to=FLOAT),
        ]


def _known(node: NodeProto) -> list[NodeProto]:
    """The product in ops that the CPU provider has."""
    if node.op_type != "MatMulBlockQuantizedFp8Weight":
        return [node]
    x, weight, scale = node.input
    wide = f"{node.output[0]}.weight"
    dequantise = helper.make_node("DequantizeLinear", [weight, scale], [wide], axis=1, block_size=BLOCK)
    product = helper.make_node("FusedMatMul", [x, wide], node.output, domain="com.microsoft", transB=1)
    return [dequantise, product]
