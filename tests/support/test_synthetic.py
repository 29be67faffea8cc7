"""The synthetic checkpoints are what other tests take them for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint
from tests.support.synthetic import random_checkpoint, tiny_config

torch = pytest.importorskip("torch")


def test_transformers_loads_them_and_activations_stay_sane(tmp_path: Path) -> None:
    from transformers import DeepseekV3ForCausalLM

    path = random_checkpoint(tmp_path / "c", tiny_config(hidden_size=128, num_hidden_layers=6), 3, shards=2)
    model, report = DeepseekV3ForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        outputs = model(torch.arange(90)[None], output_hidden_states=True)
    assert all(0.3 < float(hidden.std()) < 5 for hidden in outputs.hidden_states)
    assert 0.3 < float(outputs.logits.std()) < 5


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_the_bias_changes_which_experts_are_selected(tmp_path: Path, scoring: str) -> None:
    config = tiny_config(scoring_func=scoring, n_routed_experts=32, n_group=1, topk_group=1)
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "c", config, 5))
    gate = checkpoint.float32("model.layers.1.mlp.gate.weight")
    bias = checkpoint.float32("model.layers.1.mlp.gate.e_score_correction_bias")
    logits = np.random.default_rng(0).standard_normal((50, 48), dtype=np.float32) @ gate.T
    e = np.exp(logits)
    scores = e / (1 + e) if scoring == "sigmoid" else e / e.sum(-1, keepdims=True)
    plain, biased = (np.sort(np.argsort(-s, axis=1)[:, :3], axis=1) for s in (scores, scores + bias))
    changed = (plain != biased).any(axis=1).mean()
    assert changed > 0.5
    assert len(np.unique(biased)) > 6


def test_seeds_and_dtypes(tmp_path: Path) -> None:
    def embedding(folder: str, seed: int, dtype: str) -> np.ndarray:
        path = random_checkpoint(tmp_path / folder, tiny_config(), seed, dtype)  # type: ignore[arg-type]
        return Checkpoint.open(path).float32("model.embed_tokens.weight")

    first = embedding("a", 1, "F32")
    np.testing.assert_array_equal(first, embedding("b", 1, "F32"))
    np.testing.assert_allclose(first, embedding("c", 1, "BF16"), rtol=2**-8)
    assert not np.array_equal(first, embedding("d", 2, "F32"))


def test_the_tokenizer_is_taken_along_only_when_asked_for(tmp_path: Path, tiny_fp8: Path) -> None:
    with_one = random_checkpoint(tmp_path / "a", tiny_config(), 1, tokenizer_from=tiny_fp8)
    assert (with_one / "tokenizer.json").read_bytes() == (tiny_fp8 / "tokenizer.json").read_bytes()
    assert not (random_checkpoint(tmp_path / "b", tiny_config(), 1) / "tokenizer.json").exists()
