"""Units of work: some experts or rows at a time make the bytes that the whole makes, within the memory they state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.work import WorkUnit
from dsv3export.errors import CheckpointError
from dsv3export.graphs import weight_units
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.lower.onnxruntime import lower
from dsv3export.graphs.packer import Packer
from dsv3export.graphs.passes.embedding import store_embedding
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.trace import graph_for
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_plan import plan_weights
from dsv3export.graphs.weight_units import plan_units
from dsv3export.recipe import Recipe
from tests.support.synthetic import random_checkpoint, tiny_config

# Ragged where a recipe allows it: the vocabulary, the dense MLP and the latents are no multiples of 128 or of a group.
CONFIG = tiny_config(vocab_size=777, hidden_size=256, intermediate_size=300, moe_intermediate_size=128)
SEQUENCES = [[0, 5, 96, 33, 2, 7], [0, 11, 12, 13, 600, 2]]
ASYMMETRIC = {
    component: {"format": "int4", "group_size": 32, "symmetric": False, "method": "mse"}
    for component in ("attention", "dense_mlp", "shared_experts", "routed_experts", "head")
}
RECIPES = {
    "fp32": Recipe.for_precision("fp32"),
    "fp8": Recipe.for_precision("fp8"),
    "int8": Recipe.for_precision("int8"),
    "int4 asymmetric": Recipe.from_json({"precision": "int4", "components": ASYMMETRIC}),
}


@pytest.fixture(scope="module", params=["BF16", "FP8"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("units") / "checkpoint"
    return Checkpoint.open(random_checkpoint(path, CONFIG, seed=4, dtype=request.param, shards=2))


def lowered(checkpoint: Checkpoint, recipe: Recipe) -> GraphWithWeights:
    traced = GraphWithWeights.traced(graph_for(checkpoint.config))
    return lower(store_embedding(quantise(traced, recipe, checkpoint.config), "BF16"))


def made(units: list[WorkUnit]) -> dict[str, bytes]:
    """All bytes of each weight, put together from the units."""
    weights: dict[str, bytearray] = {}
    for unit in units:
        for part, array in zip(unit.parts, unit.make(), strict=True):
            assert array.shape == part.shape, part.weight.name
            whole = weights.setdefault(part.weight.name, bytearray(part.weight.nbytes))
            whole[part.offset : part.offset + part.nbytes] = np.ascontiguousarray(array).tobytes()
    return {name: bytes(data) for name, data in weights.items()}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_parts_are_the_whole(checkpoint: Checkpoint, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_units, "UNIT_ELEMENTS", 20_000)
    graph, packer = lowered(checkpoint, recipe), Packer(checkpoint)
    plan = plan_weights([graph], checkpoint, copy_weights=True)
    (stage,) = plan_units(plan, graph.weights, packer, None)
    found = made(list(stage.units))
    assert found.keys() == graph.weights.keys()
    for name, expr in graph.weights.items():
        assert found[name] == np.ascontiguousarray(packer.pack(expr)).tobytes(), name
    # Banks one or a few experts at a time, the head 128 rows at a time, whatever the recipe.
    parts: dict[str, list[tuple[int, int] | None]] = {}
    for unit in stage.units:
        for part in unit.parts:
            parts.setdefault(part.weight.name, []).append(part.rows)
    for name, rows in parts.items():
        if "experts" in name and "shared" not in name:
            assert len(rows) >= 4, name
        if name.startswith("lm_head.weight"):
            assert len(rows) == 7, name


def test_calibrated_parts_are_the_whole(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_units, "UNIT_ELEMENTS", 20_000)
    choice = {"precision": "fp32", "components": {"routed_experts": {"format": "int4", "group_size": 32}}}
    graph = lowered(checkpoint, Recipe.from_json(choice, calibrated=True))
    calibration = Calibration(checkpoint, SEQUENCES)
    packer = Packer(checkpoint, calibration)
    plan = plan_weights([graph], checkpoint, copy_weights=True)
    first, *stages = plan_units(plan, graph.weights, packer, calibration)
    assert not any("mlp.experts" in part.weight.name for unit in first.units for part in unit.parts)
    assert len(stages) == 1
    stages[0].prepare()
    found = made(list(stages[0].units))
    assert all("mlp.experts" in name for name in found) and len(found) >= 4
    for name, data in found.items():
        # One expert at a time or all at once may round a sum otherwise: nearly all numbers are the same.
        whole = np.frombuffer(np.ascontiguousarray(packer.pack(graph.weights[name])).tobytes(), np.uint8)
        assert (np.frombuffer(data, np.uint8) == whole).mean() > 0.98, name


def test_a_number_that_is_none_is_named_with_its_expert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_units, "UNIT_ELEMENTS", 1)
    path = random_checkpoint(tmp_path / "checkpoint", CONFIG, seed=4)
    name = "model.layers.1.mlp.experts.5.down_proj.weight"
    offset = Checkpoint.open(path).tensors[name].offset
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(offset + 4 * (128 * 3 + 7))
        file.write(np.float32(np.nan).tobytes())
    checkpoint = Checkpoint.open(path)
    graph = lowered(checkpoint, RECIPES["int4 asymmetric"])
    plan = plan_weights([graph], checkpoint, copy_weights=True)
    (stage,) = plan_units(plan, graph.weights, Packer(checkpoint), None)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.down_proj\[5:6\]\[0, 3, 7\]: expected a fin"):
        made(list(stage.units))


def test_every_expression_of_a_group_has_the_same_leaves(checkpoint: Checkpoint) -> None:
    graph = lowered(checkpoint, RECIPES["int8"])
    exprs: dict[str, WeightExpr] = dict(graph.weights)
    groups = weight_units.weight_groups(exprs)
    assert sorted(name for group in groups for name in group) == sorted(exprs)
    assert any(len(group) > 2 for group in groups)
