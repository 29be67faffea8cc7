"""One token behind 32k and 128k cached ones: positions, YaRN, masks and sums against float64.

The cache is filled with made-up latents rather than by a prefill of hours. Among random ones there is a needle, which
the new token's query points at, so that most of its attention must fall on that one row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import Session
from tests.reference.float64_model import Float64Model
from tests.support.synthetic import random_checkpoint, tiny_config

Array = npt.NDArray[Any]
TOKEN = 11
CONTEXTS = [32_768, 131_072]
pytestmark = pytest.mark.slow


class LongModel(Float64Model):
    """Of one layer and one new token, behind latents that are given: float64[T, Dc + Dr]."""

    latents: Array
    shares: Array

    def _attention(self, x: Array, prefix: str) -> Array:
        c, position = self.c, len(self.latents)
        heads, nope, rope, value = (
            c[key] for key in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        low = self._norm(x @ self._w(f"{prefix}.q_a_proj.weight").T, f"{prefix}.q_a_layernorm.weight", 1e-6)
        query = (low @ self._w(f"{prefix}.q_b_proj.weight").T).reshape(heads, nope + rope)
        both = (x @ self._w(f"{prefix}.kv_a_proj_with_mqa.weight").T)[0]
        latent = self._norm(both[: c["kv_lora_rank"]], f"{prefix}.kv_a_layernorm.weight", 1e-6)
        own = np.concatenate([latent, self._at(both[c["kv_lora_rank"] :], position)])
        rows = np.concatenate([self.latents, own[None]])
        up = self._w(f"{prefix}.kv_b_proj.weight").reshape(heads, nope + value, c["kv_lora_rank"])
        query_pe = np.stack([self._at(each, position) for each in query[:, nope:]])
        absorbed = np.einsum("hd,hdc->hc", query[:, :nope], up[:, :nope])
        scores = np.concatenate([absorbed, query_pe], axis=1) @ rows.T * self._softmax_scale()
        self.shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        self.shares /= self.shares.sum(axis=1, keepdims=True)
        mixed = np.einsum("ht,tc,hvc->hv", self.shares, rows[:, : c["kv_lora_rank"]], up[:, nope:], optimize=True)
        return mixed.reshape(1, -1) @ self._w(f"{prefix}.o_proj.weight").T

    def _at(self, x: Array, position: int) -> Array:
        """Rotary, of one row at a position."""
        turned = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * self._frequencies())
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
    config = tiny_config(
        num_hidden_layers=1, first_k_dense_replace=1, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16,
        max_position_embeddings=163_840, rope_scaling=yarn,
    )  # fmt: skip
    return random_checkpoint(tmp_path_factory.mktemp("long") / "checkpoint", config, seed=3)


@pytest.fixture(scope="module", params=["executor", "fp32", "bf16 cache"])
def session(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    if request.param == "executor":
        return Executor.from_checkpoint(checkpoint)
    out = tmp_path_factory.mktemp("long") / "engine"
    build_engine(checkpoint, out, cache_dtype="bf16" if request.param == "bf16 cache" else None)
    return Engine.load(out, threads=1).session


@pytest.mark.parametrize("needle", [0, 0.37, 1], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize("tokens", CONTEXTS)
def test_a_needle_is_found_and_the_logits_are_right(
    checkpoint: Path, session: Session, tokens: int, needle: float
) -> None:
    model = LongModel(Checkpoint.open(checkpoint).config.raw, Checkpoint.open(checkpoint).float32)
    rows = np.random.default_rng(7).standard_normal((tokens - 1, session.cache_layout.width)) * 0.3
    # Two passes: the first tells what the query is, the second is the test.
    place = int(needle * (tokens - 2))
    model.latents = rows
    model.final_hidden([TOKEN])
    rows[place] = _pointed_at(model, rows)
    cache = LatentCache(session.cache_layout, 1, tokens)
    cache.view(0, range(1))[0, : tokens - 1] = rows
    model.latents = cache.view(0, range(1))[0, : tokens - 1].astype(np.float64)  # as the cache's type holds them
    expected = model.final_hidden([TOKEN]) @ model._w("lm_head.weight").T
    assert model.shares[:, place].max() > 0.5 > 10 / tokens
    got = session.step(np.array([[TOKEN]]), np.array([tokens - 1]), cache, range(1), np.array([0]))
    half = session.cache_layout.dtype == "BF16"
    np.testing.assert_allclose(got, expected, rtol=0, atol=(3e-2 if half else 1e-4) * np.abs(expected).max())
    # Without the needle the answer is another one, far beyond that tolerance.
    model.latents = rows.copy()
    model.latents[place] = 0
    without = model.final_hidden([TOKEN]) @ model._w("lm_head.weight").T
    assert np.abs(without - expected).max() > 0.1 * np.abs(expected).max()


def _pointed_at(model: LongModel, rows: Array) -> Array:
    """A row whose score with head 0's query exceeds all others by 12 at least."""
    direction = _query(model)
    scale = model._softmax_scale()
    best = (rows @ direction * scale).max() + np.log(len(rows)) + 4
    found: Array = direction * (best / (direction @ direction * scale))
    return found


def _query(model: LongModel) -> Array:
    """Head 0's absorbed query of the new token, [Dc + Dr]."""
    c, prefix = model.c, "model.layers.0.self_attn"
    nope = c["qk_nope_head_dim"]
    x = model._norm(model._w("model.embed_tokens.weight")[[TOKEN]], "model.layers.0.input_layernorm.weight")
    low = model._norm(x @ model._w(f"{prefix}.q_a_proj.weight").T, f"{prefix}.q_a_layernorm.weight", 1e-6)
    query = (low @ model._w(f"{prefix}.q_b_proj.weight").T).reshape(c["num_attention_heads"], -1)[0]
    up = model._w(f"{prefix}.kv_b_proj.weight").reshape(c["num_attention_heads"], -1, c["kv_lora_rank"])[0, :nope]
    return np.concatenate([query[:nope] @ up, model._at(query[nope:], len(model.latents))])
