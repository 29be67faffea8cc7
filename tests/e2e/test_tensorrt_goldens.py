"""TensorRT-RTX engines that compute in float32, replayed layer by layer as TensorRT was told, against the goldens.

Each engine is really built; what is replayed is the record of the calls that it was built of. See
`graphs/lower/tensorrt/replay.py` for what that proves and what it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dsv3export.engine.program import PHASES, Phase
from dsv3export.graphs import Executor
from tests.e2e.goldens import Golden, greedy
from tests.support.compare import HIDDEN, LOGITS, MARGIN, ROUTER_WEIGHTS, assert_close

Replayed = Callable[..., Any]
ROUTER = ("mlp.gate.ids", "mlp.gate.weights")
CASES = [("bf16", "int8"), ("bf16", "int4"), ("fp8", "int4")]


@pytest.fixture
def replayed(golden: Golden, replayed_rtx: Replayed) -> Any:
    """Weights as the checkpoint has them, arithmetic in float32."""
    return replayed_rtx(golden.variant, golden.variant, "fp32")


@pytest.mark.parametrize("prompt", range(8))
def test_logits_after_the_last_token(golden: Golden, replayed: Any, prompt: int) -> None:
    expected = golden.arrays("last_logits")["last_logits"][prompt]
    assert_close(replayed.logits(golden.ids(prompt))[-1], expected, LOGITS, f"prompt {prompt}")


@pytest.mark.parametrize(("prompt", "chunk"), [(3, 1), (4, 2), (3, 7), (5, 48), (1, 256), (5, 256)])
def test_logits_at_every_position(golden: Golden, replayed: Any, prompt: int, chunk: int) -> None:
    """Chunks of 1 and 2 tokens go through the engines for decoding, the others through those for prefill."""
    expected = golden.arrays("full_logits")[f"p{prompt}_logits"]
    assert_close(replayed.logits(golden.ids(prompt), chunk), expected, LOGITS, f"prompt {prompt}")


def test_greedy_continuations_in_ragged_batches(golden: Golden, replayed: Any) -> None:
    tokens = greedy(replayed, [golden.ids(i) for i in range(8)], 12, slots=5)
    assert tokens == [prompt["greedy_ids"][:12] for prompt in golden.prompts]


@pytest.mark.parametrize("phase", PHASES)
def test_inside_the_model(golden: Golden, replayed: Any, phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states after every layer and the routers' choices, of the last tokens of a prompt."""
    monkeypatch.setattr(replayed, "inner", {"moe_layer": ROUTER})
    ids, tokens = golden.ids(3), 1 if phase == "decode" else 7
    replayed.logits(ids, tokens)

    hidden, router = golden.arrays("hidden"), golden.arrays("router")
    names = ["embed_tokens", *(f"layers.{layer}" for layer in range(4))]
    for name, row in zip(names, hidden["p3_last_hidden"], strict=True):
        assert_close(replayed.seen[name][0, -1], row, HIDDEN, name)
    for layer in (1, 2, 3):
        chosen, weights = (replayed.seen[f"layers.{layer}.{name}"][-1].numpy() for name in ROUTER)
        order, key = np.argsort(chosen), f"p3_layer{layer}"
        margin = min(router[f"{key}_expert_margin"][-1], router[f"{key}_group_margin"][-1])
        assert margin > MARGIN, "the prompt's last token decides nothing here"
        assert chosen[order].tolist() == router[f"{key}_topk_ids"][-1].tolist()
        assert_close(weights[order], router[f"{key}_topk_weights"][-1], ROUTER_WEIGHTS, key)


@pytest.mark.parametrize(("variant", "precision"), CASES)
@pytest.mark.parametrize("chunk", [2, 256])
def test_integer_weights_compute_what_the_executor_does(
    variant: str, precision: str, chunk: int, request: pytest.FixtureRequest, replayed_rtx: Replayed
) -> None:
    """The executor at the engine's own recipe; both make their weights by the same code."""
    golden: Golden = request.getfixturevalue(f"{variant}_golden")
    replayed = replayed_rtx(variant, precision, "fp32")
    executor = Executor.from_checkpoint(golden.checkpoint, recipe=replayed.files.manifest.recipe)
    for prompt in (3,) if chunk == 2 else (3, 5):
        expected = executor.logits(golden.ids(prompt))
        assert_close(replayed.logits(golden.ids(prompt), chunk), expected, LOGITS, f"prompt {prompt}")
