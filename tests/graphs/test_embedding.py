"""The embedding table in a dtype of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.graphs import graph_for
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.passes.embedding import embedding_dtype, store_embedding
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import verify
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.recipe import Recipe
from tests.support.synthetic import random_checkpoint, tiny_config

TABLE = "model.embed_tokens.weight"


def stored(dtype: str) -> GraphWithWeights:
    graph = store_embedding(GraphWithWeights.traced(graph_for(ModelConfig.from_dict(tiny_config()))), dtype)
    verify(graph.model)
    return graph


@pytest.mark.parametrize(("dtype", "numpy_name"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_rows_are_cast_after_the_lookup(dtype: str, numpy_name: str) -> None:
    graph = stored(dtype)
    assert graph.weights[TABLE] == WeightExpr(numpy_name, name=TABLE)
    embed = graph.model.functions[(KIND_DOMAIN, "embed", "")]
    gather = next(node for node in embed if node.op_type == "Gather")
    table = gather.inputs[0]
    assert table is not None
    assert table.dtype == ir.DataType[numpy_name.upper()]
    (user,) = gather.outputs[0].consumers()
    assert user.op_type == "Cast"
    assert user.attributes["to"].value == ir.DataType.FLOAT.value
    assert embed.outputs[0].dtype == ir.DataType.FLOAT


def test_a_float32_table_needs_no_cast() -> None:
    embed = stored("F32").model.functions[(KIND_DOMAIN, "embed", "")]
    producer = embed.outputs[0].producer()
    assert producer is not None
    assert producer.op_type == "Gather"


@pytest.mark.parametrize(
    ("checkpoint", "wanted", "dtype"),
    [("F32", "fp32", "F32"), ("F32", "bf16", "BF16"), ("F32", "f16", "F16"), ("BF16", "fp32", "BF16"),
     ("BF16", "f16", "BF16")],
)  # fmt: skip
def test_a_recipe_narrows_but_never_widens(checkpoint: Any, wanted: str, dtype: str, tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "checkpoint", tiny_config(), seed=1, dtype=checkpoint)
    recipe = Recipe.from_json({"precision": "fp32", "components": {"embedding": {"format": wanted}}})
    assert embedding_dtype(Checkpoint.open(path), recipe) == dtype
