"""The PyTorch reference against the float64 model, and against the graph that is traced from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.graphs import Executor
from dsv3export.plugins.mla_attention.op import absorbed
from dsv3export.reference import ReferenceModel
from dsv3export.reference.attention import rotate
from dsv3export.reference.load import load_reference
from tests.reference.float64_model import Float64Model
from tests.support.compare import LOGITS, assert_close
from tests.support.synthetic import random_checkpoint, tiny_config

IDS = [3, 96, 0, 41, 41, 7, 88, 19, 2, 55, 13]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("reference") / "checkpoint"
    return Checkpoint.open(random_checkpoint(path, tiny_config(num_nextn_predict_layers=1), seed=5))


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> ReferenceModel:
    return load_reference(checkpoint)


def step(reference: ReferenceModel, ids: list[int], start: int, caches: list[torch.Tensor]) -> Any:
    count = len(ids)
    with torch.inference_mode():
        return reference(torch.tensor([ids]), torch.tensor([start]), caches, torch.arange(count))


def test_trunk_agrees_with_the_float64_model(checkpoint: Checkpoint, reference: ReferenceModel) -> None:
    expected = Float64Model(checkpoint.config.raw, checkpoint.float32)
    logits, final_hidden, _ = step(reference, IDS, 0, reference.new_caches(1, len(IDS)))
    assert_close(logits, expected.logits(IDS), LOGITS, "logits")
    assert_close(final_hidden[0], expected.final_hidden(IDS), LOGITS, "final_hidden")


def test_mtp_layer_agrees_with_the_float64_model(checkpoint: Checkpoint, reference: ReferenceModel) -> None:
    expected = Float64Model(checkpoint.config.raw, checkpoint.float32).draft_logits(IDS)
    _, final_hidden, _ = step(reference, IDS[:-1], 0, reference.new_caches(1, len(IDS)))
    start, count = torch.zeros(1, dtype=torch.int64), len(IDS) - 1
    with torch.inference_mode():
        embedded, cos, sin = reference.embedding(torch.tensor([IDS[1:]]), start)
        cache = torch.zeros(1, count, checkpoint.config.latent_width)
        drafts, _, _ = reference.mtp[0](embedded, final_hidden, start, cos, sin, cache, torch.arange(count))
    assert_close(drafts, expected, LOGITS, "drafts")
    assert_close(Executor(checkpoint).draft_logits(IDS), expected, LOGITS, "the executor's drafts")


def test_the_graph_computes_what_the_reference_computes(checkpoint: Checkpoint, reference: ReferenceModel) -> None:
    """Bit for bit: the executor runs the same torch ops in the same order."""
    logits, _, caches = step(reference, IDS, 0, reference.new_caches(1, len(IDS)))
    values = Executor(checkpoint).intermediates(IDS)
    assert (values["lm_head"] == logits.numpy()).all()
    for layer, cache in enumerate(caches):
        assert (values[f"layers.{layer}.self_attn.latent_append"] == cache.numpy()).all()


def test_steps_over_a_cache_equal_one_pass(reference: ReferenceModel) -> None:
    whole, _, _ = step(reference, IDS, 0, reference.new_caches(1, len(IDS)))
    caches, rows = reference.new_caches(1, len(IDS) + 3), []
    for first, last in ((0, 4), (4, 5), (5, 11)):
        logits, _, caches = step(reference, IDS[first:last], first, caches)
        rows.append(logits)
    assert_close(torch.cat(rows), whole, LOGITS, "logits")


def test_naive_and_absorbed_attention_give_the_same_model(
    reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = step(reference, IDS, 0, reference.new_caches(1, len(IDS)))
    monkeypatch.setattr("dsv3export.reference.attention.mla_attention", absorbed)
    other, _, _ = step(reference, IDS, 0, reference.new_caches(1, len(IDS)))
    assert not torch.equal(whole, other)
    assert_close(other, whole, LOGITS, "logits")


def test_rotation_turns_interleaved_pairs() -> None:
    """Two heads of two pairs; pair i of every head by angle i."""
    angles = torch.tensor([[[0.5, -2.0]]])
    x = torch.arange(1.0, 9.0).reshape(1, 1, 8)
    turned = rotate(x, angles.cos(), angles.sin(), heads=2)[0, 0]
    pairs = torch.complex(x[0, 0, 0::2], x[0, 0, 1::2]) * torch.exp(1j * angles[0, 0].repeat(2))
    assert_close(turned, torch.view_as_real(pairs).flatten(), 1e-5)


def test_slots_do_not_see_each_other(reference: ReferenceModel) -> None:
    ids = torch.tensor([IDS[:5], IDS[5:10]])
    with torch.inference_mode():
        both, _, _ = reference(ids, torch.tensor([0, 0]), reference.new_caches(2, 20), torch.arange(10))
    alone, _, _ = step(reference, IDS[5:10], 0, reference.new_caches(1, 20))
    assert_close(both[5:], alone, LOGITS, "slot 1")


def test_parameters_carry_the_checkpoints_names(tiny_fp8: Path) -> None:
    with torch.device("meta"):
        model = ReferenceModel(ModelConfig.from_file(tiny_fp8 / "config.json"))
    names = set(model.state_dict())
    assert "layers.0.mlp.gate_proj.weight" in names
    assert "layers.3.self_attn.kv_a_proj_with_mqa.weight" in names
    assert "layers.1.mlp.gate.e_score_correction_bias" in names
    assert "layers.1.mlp.shared_experts.down_proj.weight" in names
    assert "mtp.0.eh_proj.weight" in names
