"""The ONNX Runtime lowering: its structure, its weights, and that it is a function of the checkpoint only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.dtypes import NUMPY
from dsv3export.errors import InternalError
from dsv3export.graphs import graph_for
from dsv3export.graphs.lower.onnxruntime import lower, serialize
from dsv3export.graphs.lower.onnxruntime.serialize import Location
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.packer import Packer
from dsv3export.graphs.packing import PACKINGS
from dsv3export.graphs.passes.embedding import store_embedding
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.values import is_weight
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_plan import plan_weights
from tests.support.synthetic import tiny_config

Lowered = tuple[ir.Model, Mapping[str, WeightExpr]]


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_dict(tiny_config())


@pytest.fixture(scope="module")
def lowered(config: ModelConfig) -> Lowered:
    after = lower(GraphWithWeights.traced(graph_for(config)))
    return after.model, after.weights


def functions(model: ir.Model) -> dict[str, ir.Function]:
    """By name; layer kinds and the functions of ops have different names."""
    return {function.name: function for function in model.functions.values()}


def test_layer_kinds_stay_functions(lowered: Lowered) -> None:
    model, _ = lowered
    kinds = [function.name for function in model.functions.values() if function.domain == KIND_DOMAIN]
    assert kinds == ["embed", "dense_layer", "moe_layer", "head"]
    assert [node.op_type for node in model.graph] == ["embed", "dense_layer", "moe_layer", "head"]


def test_every_called_function_is_there_once(lowered: Lowered) -> None:
    model, _ = lowered
    called = {
        (node.domain, node.op_type)
        for nodes in (model.graph, *model.functions.values())
        for node in nodes
        if node.domain not in ("", "com.microsoft")
    }
    present = [(function.domain, function.name) for function in model.functions.values()]
    assert called == set(present)
    assert len(present) == len(set(present))


def test_ops_of_the_dsv3_domain_are_gone(lowered: Lowered) -> None:
    """What is left are calls of functions that the model carries, whose bodies use ONNX and com.microsoft only."""
    model, _ = lowered
    bodies = [function for function in model.functions.values() if function.domain != KIND_DOMAIN]
    assert {function.name for function in bodies} == {
        "Linear",
        "LatentAppend",
        "MlaAttention",
        "MoERoute",
        "MoEExperts",
    }
    for function in bodies:
        assert {node.domain for node in function} <= {"", "com.microsoft"}


@pytest.mark.parametrize(("stored", "packing"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_a_router_may_stay_as_stored_and_is_widened_before_the_product(
    config: ModelConfig, stored: str, packing: str
) -> None:
    after = lower(GraphWithWeights.traced(graph_for(config)), router_dtype=stored)
    name = "model.layers.1.mlp.gate.weight"
    assert after.weights[name] == WeightExpr(packing, name=name)
    kind = functions(after.model)["moe_layer"]
    widened = [node for node in kind if node.op_type == "Widen"]
    assert [str(node.inputs[1].name) for node in widened if node.inputs[1] is not None] == ["mlp.gate.weight"]
    (product,) = widened[0].outputs[0].consumers()
    assert product.op_type == "Linear" and widened[0].outputs[0].dtype == ir.DataType.FLOAT
    assert not any(node.op_type == "Widen" for node in functions(after.model)["dense_layer"])


def test_gate_and_up_banks_become_one(lowered: Lowered) -> None:
    model, weights = lowered
    packed = weights["model.layers.1.mlp.experts.gate_up_proj"]
    leaves = [leaf.name for leaf in packed.leaves()]
    assert leaves == ["model.layers.1.mlp.experts.gate_proj", "model.layers.1.mlp.experts.up_proj"]
    assert packed.describe() == "interleave_gate_up(float32, float32)"
    value = next(value for value in model.graph.inputs if value.name == "model.layers.1.mlp.experts.gate_up_proj")
    assert (value.shape, value.dtype) == ((8, 48, 48), ir.DataType.FLOAT)
    formals = {str(value.name) for value in functions(model)["moe_layer"].inputs if is_weight(value)}
    assert "mlp.experts.gate_up_proj" in formals
    assert not formals & {"mlp.experts.gate_proj", "mlp.experts.up_proj"}


def test_gate_and_up_rows_alternate() -> None:
    gate = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    packed = PACKINGS["interleave_gate_up"]([gate, gate + 100], {})
    assert packed[0, :, 0].tolist() == [0, 100, 2, 102, 4, 104]
    assert packed[1, 0].tolist() == [6, 7]


def test_calls_pass_what_the_kinds_declare(lowered: Lowered) -> None:
    model, _ = lowered
    for node in model.graph:
        formals = functions(model)[node.op_type].inputs
        assert len(node.inputs) == len(formals)
        for value, formal in zip(node.inputs, formals, strict=True):
            assert value is not None
            assert (value.dtype, value.shape) == (formal.dtype, formal.shape)


def test_each_packed_weight_is_an_input_of_the_main_graph(lowered: Lowered) -> None:
    model, weights = lowered
    inputs = {str(value.name): value for value in model.graph.inputs if is_weight(value)}
    assert inputs.keys() == weights.keys()


def test_run_time_inputs_and_outputs_are_the_runtimes(lowered: Lowered) -> None:
    model, _ = lowered
    run_time = [str(value.name) for value in model.graph.inputs if not is_weight(value)]
    assert run_time == ["input_ids", "start", "latent_cache.0", "latent_cache.1", "logit_rows"]
    outputs = [str(value.name) for value in model.graph.outputs]
    assert outputs == ["logits", "final_hidden", "latent_cache.0.updated", "latent_cache.1.updated"]


def test_provenance_survives(lowered: Lowered) -> None:
    model, _ = lowered
    assert [node.metadata_props["dsv3.path"] for node in model.graph] == ["", "layers.0", "layers.1", ""]
    moe = functions(model)["moe_layer"]
    experts = next(node for node in moe if node.op_type == "MoEExperts")
    assert experts.outputs[0].name == "mlp.experts"
    assert experts.metadata_props["dsv3.module"] == "mlp.experts"


def test_packed_arrays_are_what_the_table_says(tiny_fp8: Path) -> None:
    checkpoint = Checkpoint.open(tiny_fp8)
    after = lower(store_embedding(GraphWithWeights.traced(graph_for(checkpoint.config)), "BF16"))
    counts = Counter(expr.packing for expr in after.weights.values())
    assert counts.pop("float32") > 40
    assert counts == {"bfloat16": 1, "interleave_gate_up": 3, "w_uk": 4, "w_uv": 4}
    packer = Packer(checkpoint)
    for planned in plan_weights([after], checkpoint, copy_weights=True):
        array = packer.pack(after.weights[planned.name])
        assert array.shape == planned.shape, planned.name
        assert array.dtype == NUMPY[planned.dtype], planned.name


def test_serialized_graph_holds_no_weight(config: ModelConfig) -> None:
    after = lower(GraphWithWeights.traced(graph_for(config)))
    places = {name: Location("weights/somewhere", 64 * i, 8) for i, name in enumerate(after.weights)}
    proto = onnx.load_from_string(serialize(after.model, places))
    assert {tensor.name for tensor in proto.graph.initializer} == places.keys()
    for tensor in proto.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.EXTERNAL
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == "weights/somewhere"
        assert int(where["offset"]) == places[tensor.name].offset
        assert not tensor.raw_data
    assert not places.keys() & {value.name for value in proto.graph.input}
    assert proto.ByteSize() < 100_000


def test_a_weight_without_dtype_is_not_serialized(config: ModelConfig) -> None:
    model = lower(GraphWithWeights.traced(graph_for(config))).model
    value = next(value for value in model.graph.inputs if value.name == "model.norm.weight")
    value.type = None
    with pytest.raises(InternalError, match=r"model\.norm\.weight"):
        serialize(model, {"model.norm.weight": Location("weights/somewhere", 0, 8)})
