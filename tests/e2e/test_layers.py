"""Engines of some decoder layers: the reference model with the other layers taken out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.build import build_engine
from dsv3export.graphs.trace import graph_for
from dsv3export.reference import load_reference
from tests.support.compare import LOGITS, assert_close


@pytest.mark.parametrize(("text", "layers"), [("1:3", (1, 2)), (":1", (0,)), ("::3", (0, 3)), ("-1:", (3,))])
def test_it_computes_those_layers(text: str, layers: tuple[int, ...], tiny_fp8: Path, tmp_path: Path) -> None:
    report = build_engine(tiny_fp8, tmp_path / "engine", layers=text)
    assert report.manifest.layers == layers
    ids = [0, 17, 500, 1023, 3, 3, 90, 2047]
    expected = _reference_logits(tiny_fp8, layers, ids)
    assert_close(Engine.load(tmp_path / "engine", threads=1).logits(ids), expected, LOGITS)
    by_token = Engine.load(tmp_path / "engine", threads=1, prefill_chunk=1)
    assert_close(by_token.logits(ids), expected, LOGITS)
    generated = by_token.generate(ids, max_new_tokens=3)
    assert len(generated.token_ids) == 3


def _reference_logits(
    checkpoint: Path, layers: tuple[int, ...], ids: list[int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    model = load_reference(Checkpoint.open(checkpoint))
    model.layers = nn.ModuleList(model.layers[layer] for layer in layers)
    with torch.inference_mode():
        tokens = torch.tensor([ids])
        logits, _, _ = model(
            tokens, torch.zeros(1, dtype=torch.int64), model.new_caches(1, len(ids)), torch.arange(len(ids))
        )
    return logits.numpy()


def test_weights_and_values_keep_their_names(tiny_fp8: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_fp8)
    graph = graph_for(checkpoint.config, layers=[2, 3]).graph
    names = {str(output.name) for node in graph for output in node.outputs}
    assert {"layers.2.hidden", "layers.3.hidden", "latent_cache.0.updated", "latent_cache.1.updated"} <= names
    assert not any(name.startswith(("layers.0", "layers.1", "latent_cache.2")) for name in names)
    build_engine(tiny_fp8, tmp_path / "engine", layers="2:4", precision="fp8")
    files = EngineFiles.open(tmp_path / "engine")
    assert files.layers == (2, 3)
    owners = {name.split(".")[2] for name in files.entries if name.startswith("model.layers.")}
    assert owners == {"2", "3"}


def test_a_weight_is_that_of_the_whole_engine(tiny_fp8: Path, tmp_path: Path) -> None:
    """Layers keep their numbers for a recipe's first and last layers, so that a slice measures what the whole would."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'precision = "int4"\n[last_layers]\ncount = 1\n[last_layers.components.routed_experts]\nformat = "int8"\n'
    )
    for name, layers in (("whole", None), ("slice", "2:4")):
        build_engine(tiny_fp8, tmp_path / name, recipe=recipe, layers=layers)
    whole, part = (EngineFiles.open(tmp_path / name) for name in ("whole", "slice"))
    assert part.entries.keys() < whole.entries.keys()
    for name in part.entries:
        assert part.weight(name).tobytes() == whole.weight(name).tobytes(), name
    described = json.loads((tmp_path / "slice" / "engine.json").read_text())
    assert (
        described["layers"] == [2, 3] and json.loads((tmp_path / "whole" / "engine.json").read_text())["layers"] is None
    )
