"""What a latent cache holds against what was to be written, and against another one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.caches import CacheErrors

STAGE, LATENT, ROTARY = "layers.1", 6, 2
RANDOM = np.random.default_rng(3)


def values(rows: NDArray[np.float32], held: NDArray[np.float32], narrow: bool) -> dict[str, NDArray[np.float32]]:
    """As a stage of `narrow` or float32 cache shows them, [1, S, width]."""
    name = "latent_append.latent" if narrow else "latent_append"
    return {
        f"{STAGE}.self_attn.kv_a_layernorm": rows[None, :, :LATENT],
        f"{STAGE}.self_attn.rotary_embedding_2": rows[None, :, LATENT:],
        f"{STAGE}.self_attn.{name}": held[None],
    }


def test_the_format_and_the_model_are_told_apart() -> None:
    """The second model computes rows that are 10 % too large; its cache loses 1 % of position 2 alone."""
    rows = RANDOM.standard_normal((4, LATENT + ROTARY)).astype(np.float32)
    wrong, held = 1.1 * rows, 1.1 * rows
    held[2] *= 0.99
    errors = CacheErrors(STAGE)
    errors.add(0, values(rows, rows, False), values(wrong, held, True), values(rows, np.float32(1.5) * rows, True))
    found = errors.summary()
    assert found is not None and (found.name, found.stage) == (f"{STAGE}.self_attn.latent_append", STAGE)
    assert np.allclose(found.propagated.by_position, [0.1, 0.1, 0.089, 0.1], atol=1e-6)
    assert np.allclose(found.injected.by_position, 0.5, atol=1e-6)
    assert np.allclose(found.format.by_position, 0.5, atol=1e-6)


def test_a_stage_without_a_cache() -> None:
    errors = CacheErrors("head")
    errors.add(0, {"lm_head": np.ones((3, 5))}, {"lm_head": np.ones((3, 5))}, {"lm_head": np.ones((3, 5))})
    assert errors.summary() is None
