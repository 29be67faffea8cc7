"""The lowering for the native CPU kernels: one node for each op that they have, nothing beside it, the same weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from dsv3export.config import ModelConfig
from dsv3export.graphs import graph_for
from dsv3export.graphs.executor import recipe_graph
from dsv3export.graphs.lower.onnxruntime import lower
from dsv3export.graphs.lower.onnxruntime.functions import FUNCTION_DOMAIN
from dsv3export.graphs.lower.onnxruntime.native import has_kernel, lower_native, with_native
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.plugins import DOMAIN, OPS
from dsv3export.recipe import Recipe
from dsv3export.runtime.cpu_kernels import DOMAIN as NATIVE
from dsv3export.runtime.cpu_kernels import describe

PRECISIONS = ("fp32", "bf16", "fp8", "int8", "int4")


@pytest.fixture(scope="module")
def config(tiny_bf16: Path) -> ModelConfig:
    return ModelConfig.from_file(tiny_bf16 / "config.json")


def graph(config: ModelConfig, precision: str) -> GraphWithWeights:
    return recipe_graph(config, "trunk", Recipe.for_precision(precision))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_weights_are_those_of_the_other_graph(config: ModelConfig, precision: str) -> None:
    """Each with its expression, so that one table serves both."""
    before = graph(config, precision)
    kept = before.copy()
    lowered = with_native(lower(before), kept)
    assert lowered.native is not None
    names = {value.name for value in lowered.native.graph.inputs}
    assert names == {value.name for value in lowered.model.graph.inputs}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_op_with_a_kernel_is_one_node(config: ModelConfig, precision: str) -> None:
    before = graph(config, precision)
    halves = precision == "bf16"
    ops = Counter(node.op_type for kind in before.model.functions.values() for node in kind if node.domain == DOMAIN)
    native = lower_native(before).model
    calls = Counter(
        node.op_type for kind in native.functions.values() if kind.domain == KIND_DOMAIN for node in kind
        if node.domain == FUNCTION_DOMAIN and _is_native(native, node)
    )  # fmt: skip
    expected = sum(count for op, count in ops.items() if has_kernel(op, halves))
    # with 16-bit weights, the router's are float32
    assert expected <= calls.total() <= ops.total()


def _is_native(model: ir.Model, node: ir.Node) -> bool:
    function = model.functions[(FUNCTION_DOMAIN, node.op_type, "")]
    return any(inner.domain == NATIVE for inner in function)


def test_a_function_is_a_kernel_and_what_types_need(config: ModelConfig) -> None:
    for precision in PRECISIONS:
        for function in lower_native(graph(config, precision)).model.functions.values():
            if any(node.domain == NATIVE for node in function):
                nodes = list(function)
                while precision == "fp8" and nodes[0].op_type == "Identity":
                    nodes.pop(0)
                kernel, *casts = nodes
                assert kernel.domain == NATIVE
                assert [node.op_type for node in casts] == ["Cast"] * len(kernel.outputs)


def test_a_copy_shares_nothing(config: ModelConfig) -> None:
    before = GraphWithWeights.traced(graph_for(config))
    text = ir.to_proto(before.model).SerializeToString(deterministic=True)
    lower(before.copy())
    assert ir.to_proto(before.model).SerializeToString(deterministic=True) == text


def test_every_row_has_a_kernel_in_the_library(config: ModelConfig, native_library: Path) -> None:
    library = describe()
    assert library is not None
    wanted = {
        node.op_type
        for precision in PRECISIONS
        for function in lower_native(graph(config, precision)).model.functions.values()
        for node in function
        if node.domain == NATIVE
    }
    assert wanted <= set(library.ops)
    assert any(has_kernel(op) for op in OPS)
