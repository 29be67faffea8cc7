"""Building an engine: deterministic, by reference where nothing changes, and clear about what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import load_float32
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError, ConfigError, UserError
from dsv3export.graphs.build import build_engine
from tests.support.synthetic import random_checkpoint, tiny_config


def contents(engine: Path) -> dict[str, bytes]:
    """All files but the manifest, which has times and paths in it."""
    return {
        str(file.relative_to(engine)): file.read_bytes()
        for file in sorted(engine.rglob("*"))
        if file.is_file() and file.name != "engine.json"
    }


def test_two_builds_give_the_same_bytes(tiny_fp8: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    build_engine(tiny_fp8, first)
    build_engine(tiny_fp8, second)
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    weights = [json.loads((path / "engine.json").read_text())["weights"] for path in (first, second)]
    assert weights[0] == weights[1]


def test_report_tells_size_and_time(tiny_fp8: Path, tmp_path: Path) -> None:
    report = build_engine(tiny_fp8, tmp_path / "engine")
    on_disk = sum(len(data) for data in contents(tmp_path / "engine").values())
    assert report.engine_bytes == on_disk
    assert 0 < report.seconds < 120
    assert report.manifest == EngineFiles.open(tmp_path / "engine").manifest


def test_unchanged_large_tensors_stay_in_the_checkpoint(tmp_path: Path) -> None:
    """An F32 checkpoint: all that needs no conversion, since some of it is large; gate and up are interleaved."""
    config = tiny_config(vocab_size=6000, hidden_size=64)
    checkpoint = random_checkpoint(tmp_path / "checkpoint", config, seed=1)
    report = build_engine(checkpoint, tmp_path / "engine")
    made = {entry.name for entry in report.manifest.weights if entry.location == "engine"}
    kv_b = {f"model.layers.{layer}.self_attn.mla_attention.{part}" for layer in (0, 1) for part in ("w_uk", "w_uv")}
    assert made == {"rotary.inverse_frequencies", "model.layers.1.mlp.experts.gate_up_proj", *kv_b}
    files = EngineFiles.open(tmp_path / "engine")
    down = "model.layers.1.mlp.experts.down_proj"
    assert len(files.entries[down].pieces) == config["n_routed_experts"]
    assert np.array_equal(files.weight(down), load_float32(down, Checkpoint.open(checkpoint)))
    copied = build_engine(checkpoint, tmp_path / "copied", copy_weights=True)
    assert {entry.location for entry in copied.manifest.weights} == {"engine"}
    assert copied.engine_bytes > report.engine_bytes + 2 * 6000 * 64 * 4


def test_an_engine_without_large_references_needs_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", tiny_config(), seed=1)
    report = build_engine(checkpoint, tmp_path / "engine")
    assert {entry.location for entry in report.manifest.weights} == {"engine"}


def test_a_tied_head_is_one_tensor_of_the_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True, vocab_size=6000, hidden_size=64)
    report = build_engine(random_checkpoint(tmp_path / "checkpoint", config, seed=1), tmp_path / "engine")
    entries = {entry.name: entry for entry in report.manifest.weights}
    head, embedding = entries["lm_head.weight"], entries["model.embed_tokens.weight"]
    assert head.sources == embedding.sources == ("model.embed_tokens.weight",)
    assert (head.location, head.pieces) == (embedding.location, embedding.pieces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tvm"}, r"backend 'tvm': expected one of onnxruntime, tensorrt-rtx, tensorrt"),
        ({"precision": "fp64"}, r"recipe: precision: expected .*fp32.*int4.*got .*fp64"),
        ({"recipe": "no-such.toml"}, r"no-such.toml"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], message: str, tiny_fp8: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_engine(tiny_fp8, tmp_path / "engine", **options)
    assert list(tmp_path.iterdir()) == []


def test_8_bit_experts_round_their_inputs(tiny_fp8: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('precision = "int8"\n[components.routed_experts]\nactivations = "none"\n')
    with pytest.raises(BackendError, match=r"routed_experts as int8 with activations none.*expected activations int8"):
        build_engine(tiny_fp8, tmp_path / "engine", recipe=recipe)


def test_rounded_activations_are_refused_on_a_gpu(tiny_fp8: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('precision = "fp8"\n[components.routed_experts]\nactivations = "1x128"\n')
    message = r"recipe.toml: routed_experts with activations 1x128 on onnxruntime, provider cuda: expected activations"
    with pytest.raises(UserError, match=message):
        build_engine(tiny_fp8, tmp_path / "engine", recipe=recipe, provider="cuda")
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_bad_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", tiny_config(), seed=1)
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(ConfigError):
        build_engine(checkpoint, tmp_path / "engine")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
