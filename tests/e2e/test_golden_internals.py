"""Inside the model: hidden states after every layer, and which experts the routers choose with what weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from tests.e2e.exposed_engine import engine_values
from tests.e2e.goldens import Array, Golden
from tests.support.compare import HIDDEN, MARGIN, ROUTER_WEIGHTS, assert_close

Values = Callable[[list[int]], dict[str, Array]]
ROUTER = ("mlp.gate.ids", "mlp.gate.weights")


@pytest.fixture(scope="module")
def copied_engine(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("copied") / f"{golden.variant}.engine"
    build_engine(golden.checkpoint, out, copy_weights=True)
    return out


@pytest.fixture(scope="module", params=["executor", "engine"])
def values(request: pytest.FixtureRequest, executor: Executor, copied_engine: Path) -> Values:
    """Every value of interest for a sequence, by provenance name."""
    if request.param == "executor":
        return executor.intermediates
    return lambda ids: engine_values(copied_engine, ids, {"moe_layer": ROUTER})


@pytest.mark.parametrize("prompt", [3, 7])
def test_hidden_states(golden: Golden, values: Values, prompt: int) -> None:
    expected = golden.arrays("hidden")
    actual = values(golden.ids(prompt))
    stream = expected[f"p{prompt}_last_hidden"]
    names = ["embed_tokens", *(f"layers.{layer}" for layer in range(len(stream) - 1))]
    for name, row in zip(names, stream, strict=True):
        assert_close(actual[name][0, -1], row, HIDDEN, name)
    assert_close(actual["norm"][0, -1], expected[f"p{prompt}_final_norm"], HIDDEN, "norm")


@pytest.mark.parametrize("prompt", [3, 7])
def test_router_choices_and_weights(golden: Golden, values: Values, prompt: int) -> None:
    """Ids and weights in order of the ids; a token is excused only where the golden's own margin is tiny."""
    expected = golden.arrays("router")
    actual = values(golden.ids(prompt))
    excused = 0
    for layer in (1, 2, 3):
        ids, weights = (actual[f"layers.{layer}.{name}"] for name in ROUTER)
        order = np.argsort(ids, axis=1)
        ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
        key = f"p{prompt}_layer{layer}"
        close = np.minimum(expected[f"{key}_expert_margin"], expected[f"{key}_group_margin"]) < MARGIN
        wrong = (ids != expected[f"{key}_topk_ids"]).any(axis=1)
        assert not (wrong & ~close).any(), f"layer {layer}: tokens {np.flatnonzero(wrong & ~close)}"
        excused += int(close.sum())
        assert_close(weights[~wrong], expected[f"{key}_topk_weights"][~wrong], ROUTER_WEIGHTS, f"{key} weights")
    assert excused <= 2
