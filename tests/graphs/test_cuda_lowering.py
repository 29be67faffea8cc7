"""Engines for the CUDA provider: every node has a kernel there, products are in the type that they should be in.

tests/data/cuda_kernels.json is what onnxruntime-gpu 1.31.1 registers (tests/support/make_cuda_kernels.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Compute
from dsv3export.graphs import graph_for
from dsv3export.graphs.lower.onnxruntime import lower
from dsv3export.graphs.lower.onnxruntime.providers import as_computed, lowering_for
from dsv3export.graphs.opset import OPSET
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.passes.embedding import store_embedding
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.recipe import Recipe
from tests.graphs.onnx_types import TypedNode, typed_nodes

Lowered = Callable[[Mapping[str, Any], Compute | None], list[TypedNode]]

KERNELS = json.loads((Path(__file__).parents[1] / "data" / "cuda_kernels.json").read_text())
# Ops that ONNX Runtime expands, for want of a kernel, as the standard defines them.
EXPANSIONS = {":Swish": (":Sigmoid", ":Mul"), ":CastLike": (":Cast",)}
# Ops that are no computation.
NOTHING = {":Constant"}
FP8 = {"precision": "fp8", "components": {"routed_experts": {"format": "int8"}}}
MIXED = {
    "precision": "int4",
    "components": {
        "attention": {"format": "int8", "symmetric": False},
        "routed_experts": {"format": "int4", "group_size": 64, "symmetric": False},
        "dense_mlp": {"format": "fp32"},
        "head": {"format": "f16"},
    },
    "first_layers": {"count": 1, "components": {"dense_mlp": {"format": "fp8"}}},
}
CASES: dict[str, tuple[Mapping[str, Any], Compute | None, str]] = {
    "fp32": ({"precision": "fp32"}, None, "float"),
    "int8": ({"precision": "int8"}, None, "bfloat16"),
    "int8-f16": ({"precision": "int8"}, "f16", "float16"),
    "int4": ({"precision": "int4"}, "bf16", "bfloat16"),
    "int4-f16": ({"precision": "int4"}, "f16", "float16"),
    "fp8": (FP8, None, "bfloat16"),
    "fp8-f16": (FP8, "f16", "float16"),
    "bf16 cache": ({"precision": "int8", "cache": "bf16"}, "f16", "float16"),
    "f16 cache": ({"precision": "fp32", "cache": "f16"}, None, "float"),
    "mixed": (MIXED, "bf16", "bfloat16"),
}


@pytest.fixture(scope="module")
def config(root: Path) -> ModelConfig:
    return ModelConfig.from_file(root / "examples" / "tiny-dsv3" / "config.json")


@pytest.fixture(scope="module")
def lowered_nodes(config: ModelConfig) -> Lowered:
    """Of a recipe: the nodes of its CUDA engine. Quantising leaves the traced graph as it is."""
    traced = GraphWithWeights.traced(graph_for(config))

    def lowered(description: Mapping[str, Any], compute: Compute | None) -> list[TypedNode]:
        recipe = Recipe.from_json(dict(description))
        lowering, computed = lowering_for("cuda", compute, recipe)
        quantised = quantise(traced, as_computed(lowering, recipe), config)
        quantised = narrow_cache(quantised, recipe.cache, config)
        return typed_nodes(ir.to_proto(lower(store_embedding(quantised, "BF16"), lowering.rows(computed)).model))

    return lowered


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, lowered_nodes: Lowered) -> tuple[str, list[TypedNode]]:
    description, compute, _ = CASES[request.param]
    return request.param, lowered_nodes(description, compute)


def has_kernel(op: str, inputs: tuple[str | None, ...], outputs: tuple[str, ...]) -> bool:
    """Whether a kernel takes these types: those of the op's formal inputs, the last of which may repeat."""
    entry = KERNELS["ops"].get(op)
    if entry is None:
        return False
    formals = entry["inputs"] + entry["inputs"][-1:] * (len(inputs) - len(entry["inputs"]))
    actual = [(formal, given) for formal, given in zip(formals, inputs, strict=False) if given is not None]
    actual += list(zip(entry["outputs"], outputs, strict=False))
    return any(all(given in kernel.get(formal, [given]) for formal, given in actual) for kernel in entry["kernels"])


def test_the_table_is_of_this_opset() -> None:
    assert KERNELS["opset"] == OPSET
    assert has_kernel(":MatMul", ("bfloat16", "bfloat16"), ("bfloat16",))
    assert not has_kernel(":MatMul", ("int8", "int8"), ("int8",))
    assert not has_kernel(":MatMulInteger", ("uint8", "int8", "uint8"), ("int32",)), "CUDA's takes int8 only"
    assert not has_kernel("com.microsoft:QMoE", ("float", "float", "uint8", "float"), ("float",))
    assert not has_kernel(":Swish", ("float",), ("float",))


def test_every_node_has_a_cuda_kernel(case: tuple[str, list[TypedNode]]) -> None:
    _, nodes = case
    lacking = {
        (op, node.inputs, node.outputs)
        for node in nodes
        for op in EXPANSIONS.get(node.op, (node.op,))
        if op not in NOTHING and not has_kernel(op, node.inputs[:1] if op != node.op else node.inputs, node.outputs)
    }
    assert not lacking


def test_engines_for_the_cpu_would_not_do(config: ModelConfig) -> None:
    """The check above can fail: the CPU's int8 attention multiplies uint8 by int8."""
    quantised = quantise(GraphWithWeights.traced(graph_for(config)), Recipe.for_precision("int8"), config)
    nodes = typed_nodes(ir.to_proto(lower(store_embedding(quantised, "BF16")).model))
    lacking = {
        node.op for node in nodes if node.op not in NOTHING and not has_kernel(node.op, node.inputs, node.outputs)
    }
    assert {":MatMulInteger", "com.microsoft:QMoE"} <= lacking


def test_products_are_in_the_type_of_their_weights(case: tuple[str, list[TypedNode]]) -> None:
    name, nodes = case
    narrow = CASES[name][2]
    products: dict[str, Counter[str | None]] = {}
    for node in nodes:
        products.setdefault(node.op, Counter()).update(node.inputs[:1])
    for op in ("com.microsoft:MatMulNBits", "com.microsoft:MatMulBlockQuantizedFp8Weight", "com.microsoft:QMoE"):
        assert set(products.get(op, ())) <= {narrow}
    # the router, and what reads the cache as it is
    assert products["com.microsoft:FusedMatMul"]["float"] >= 3 + 4
    assert set(products[":Softmax"]) == set(products[":RMSNormalization"]) == set(products[":TopK"]) == {"float"}
    cache = {"bf16 cache": "bfloat16", "f16 cache": "float16"}.get(name, "float")
    assert set(products[":TensorScatter"]) == {cache}


def test_which_kernels_carry_which_precision(lowered_nodes: Lowered) -> None:
    def heavy(name: str) -> dict[str, int]:
        description, compute, _ = CASES[name]
        ops = Counter(node.node.op_type for node in lowered_nodes(description, compute))
        names = ("MatMulNBits", "MatMulBlockQuantizedFp8Weight", "QMoE", "MoE")
        return {op: ops[op] for op in names if ops[op]}

    assert heavy("fp32") == {"MoE": 3}
    assert heavy("int8") == heavy("int4") == {"MatMulNBits": 29, "QMoE": 3}
    assert heavy("fp8") == {"MatMulBlockQuantizedFp8Weight": 28, "QMoE": 3}
    # four layers of four int8 projections (q_a, q_b, kv_a, o) and three layers of three in the shared expert
    assert heavy("mixed") == {"MatMulNBits": 4 * 4 + 3 * 3, "MatMulBlockQuantizedFp8Weight": 3, "QMoE": 3}


@pytest.mark.parametrize(("format", "narrow"), [("bf16", "bfloat16"), ("f16", "float16"), ("fp32", "float")])
def test_a_head_is_computed_in_its_own_type(lowered_nodes: Lowered, format: str, narrow: str) -> None:
    nodes = lowered_nodes({"precision": "fp32", "components": {"head": {"format": format}}}, None)
    head = [node for node in nodes if node.node.op_type == "FusedMatMul"][-1]
    assert head.inputs == (narrow, narrow) and head.outputs == (narrow,)


def test_qmoe_is_told_that_its_weights_are_raw(lowered_nodes: Lowered) -> None:
    """The default means that they lie in the kernel's own layout already."""
    nodes = lowered_nodes({"precision": "int4"}, None)
    experts = [node for node in nodes if node.node.op_type == "QMoE"]
    for node in experts:
        attributes = {attribute.name: attribute for attribute in node.node.attribute}
        assert attributes["weights_prepacked"].i == 0
        assert (attributes["expert_weight_bits"].i, attributes["block_size"].i) == (4, 128)
        assert node.inputs[:7] == ("bfloat16", "bfloat16", "uint8", "bfloat16", None, "uint8", "bfloat16")
    assert len(experts) == 3
