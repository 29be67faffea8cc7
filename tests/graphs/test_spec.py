"""The spec accepts what the trace makes and refuses each kind of broken graph, naming node and rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from dsv3export.config import ModelConfig
from dsv3export.errors import InternalError
from dsv3export.graphs import graph_for
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.spec import verify
from dsv3export.graphs.trace import Part
from dsv3export.graphs.values import is_weight, like, mark_weight
from tests.support.synthetic import tiny_config

Mutation = Callable[[ir.Model], None]


def node(model: ir.Model, op_type: str, kind: str = "moe_layer") -> ir.Node:
    """The first node of an op in a layer kind."""
    return next(node for node in model.functions[(KIND_DOMAIN, kind, "")] if node.op_type == op_type)


def first_call(model: ir.Model, kind: str = "moe_layer") -> ir.Node:
    return next(node for node in model.graph if node.op_type == kind)


@pytest.mark.parametrize("part", ["trunk", "mtp"])
def test_traced_graphs_are_legal(part: Part, tiny_fp8: Path) -> None:
    verify(graph_for(ModelConfig.from_file(tiny_fp8 / "config.json"), part))


def unknown_op(model: ir.Model) -> None:
    node(model, "Swish").op_type = "Gelu"


def unknown_dsv3_op(model: ir.Model) -> None:
    node(model, "Linear").op_type = "Conv"


def unknown_domain(model: ir.Model) -> None:
    node(model, "Swish").domain = "com.example"


def missing_attribute(model: ir.Model) -> None:
    del node(model, "MoERoute").attributes["topk_group"]


def surplus_attribute(model: ir.Model) -> None:
    node(model, "Linear").attributes["bias"] = ir.AttrInt64("bias", 1)


def attribute_of_another_type(model: ir.Model) -> None:
    node(model, "MlaAttention").attributes["scale"] = ir.AttrInt64("scale", 1)


def missing_input(model: ir.Model) -> None:
    node(model, "Linear").resize_inputs(1)


def absent_input(model: ir.Model) -> None:
    node(model, "Linear").replace_input_with(1, None)


def swapped_inputs(model: ir.Model) -> None:
    linear = node(model, "Linear")
    x, weight = linear.inputs
    linear.replace_input_with(0, weight)
    linear.replace_input_with(1, x)


def wrong_inner_dim(model: ir.Model) -> None:
    weight = node(model, "Linear").inputs[1]
    assert weight is not None
    weight.shape = ir.Shape([28, 49])


def wrong_rank(model: ir.Model) -> None:
    bias = node(model, "MoERoute").inputs[1]
    assert bias is not None
    bias.shape = ir.Shape([8, 1])


def wrong_dtype(model: ir.Model) -> None:
    node(model, "MoERoute").outputs[0].type = ir.TensorType(ir.DataType.INT32)


def missing_shape(model: ir.Model) -> None:
    node(model, "Mul").outputs[0].shape = None


def missing_dtype(model: ir.Model) -> None:
    node(model, "Swish").outputs[0].type = None


def missing_provenance(model: ir.Model) -> None:
    del node(model, "RMSNormalization").metadata_props["dsv3.module"]


def call_without_its_last_weight(model: ir.Model) -> None:
    call = first_call(model)
    call.resize_inputs(len(call.inputs) - 1)


def call_with_an_argument_of_another_shape(model: ir.Model) -> None:
    weight = next(value for value in first_call(model).inputs if value is not None and is_weight(value))
    weight.shape = ir.Shape([47])


def call_with_an_argument_of_another_dtype(model: ir.Model) -> None:
    weight = next(value for value in first_call(model).inputs if value is not None and is_weight(value))
    weight.type = ir.TensorType(ir.DataType.BFLOAT16)


def call_of_an_unknown_kind(model: ir.Model) -> None:
    first_call(model).op_type = "sparse_layer"


def a_plain_op_in_the_main_graph(model: ir.Model) -> None:
    x = first_call(model).inputs[0]
    assert x is not None
    model.graph.append(ir.node("Swish", [x], outputs=[like(x, "stray")], name="stray"))


REFUSED: list[tuple[Mutation, str]] = [
    (unknown_op, r"moe_layer/mlp.shared_experts.swish \(::Gelu\): is not an op of the intermediate graph"),
    (unknown_dsv3_op, r"moe_layer/self_attn.q_a_proj \(dsv3::Conv\): is not an op"),
    (unknown_domain, r"com.example::Swish\): is not an op of the intermediate graph"),
    (missing_attribute, r"moe_layer/mlp.gate.ids \(dsv3::MoERoute\): attributes are .* the schema has .*'topk_group'"),
    (surplus_attribute, r"Linear\): attributes are \['bias'\], the schema has \[\]"),
    (attribute_of_another_type, r"MlaAttention\): attributes are \['scale'\]"),
    (missing_input, r"Linear\): has 1 inputs and 1 outputs"),
    (absent_input, r"Linear\): weight is not one of float"),
    (swapped_inputs, r"Linear.weight: expected dims \[N, K\]"),
    (wrong_inner_dim, r"Linear.weight: dim K is 49, but 48 elsewhere"),
    (wrong_rank, r"MoERoute.bias: expected dims \[E\], got \[8, 1\]"),
    (wrong_dtype, r"MoERoute\): ids is not one of int64"),
    (missing_shape, r"Mul\): output .* lacks a name, dtype or shape"),
    (missing_dtype, r"Swish\): output .* lacks a name, dtype or shape"),
    (missing_provenance, r"input_layernorm \(::RMSNormalization\): does not know its module path"),
    (call_without_its_last_weight, r"trunk/layers.1 .* wrong number of arguments or results"),
    (call_with_an_argument_of_another_shape, r"layers.1 .* argument input_layernorm.weight differs from its decl"),
    (call_with_an_argument_of_another_dtype, r"layers.1 .* argument input_layernorm.weight differs from its decl"),
    (call_of_an_unknown_kind, r"trunk/layers.1 .* the main graph may only call layer kinds"),
    (a_plain_op_in_the_main_graph, r"trunk/stray .* the main graph may only call layer kinds"),
]


@pytest.fixture(scope="module")
def pristine() -> ir.Model:
    return graph_for(ModelConfig.from_dict(tiny_config()))


@pytest.mark.parametrize(("mutation", "message"), REFUSED, ids=[mutation.__name__ for mutation, _ in REFUSED])
def test_broken_graphs_are_refused(mutation: Mutation, message: str, pristine: ir.Model) -> None:
    model = pristine.clone()
    verify(model)
    mutation(model)
    with pytest.raises(InternalError, match=message):
        verify(model)


def test_a_weight_is_told_from_an_argument() -> None:
    value = ir.Value(name="w")
    assert not is_weight(value)
    assert is_weight(mark_weight(value))
    assert is_weight(like(value, "copy"))
