"""Logits against transformers' for every prompt, and the held-out text's perplexity by the goldens' protocol."""

from __future__ import annotations

import json
import math

import pytest

from tests.e2e.goldens import Golden, Program, nll
from tests.support.compare import LOGITS, assert_close

BOS = 0


@pytest.mark.parametrize("prompt", range(8))
def test_logits_after_the_last_token(golden: Golden, program: Program, prompt: int) -> None:
    expected = golden.arrays("last_logits")["last_logits"][prompt]
    assert_close(program.logits(golden.ids(prompt))[-1], expected, LOGITS, f"prompt {prompt}")


@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 5])
def test_logits_at_every_position(golden: Golden, program: Program, prompt: int) -> None:
    expected = golden.arrays("full_logits")[f"p{prompt}_logits"]
    assert_close(program.logits(golden.ids(prompt)), expected, LOGITS, f"prompt {prompt}")


@pytest.mark.parametrize("protocol", ["chunk_255", "chunk_1023"])
def test_perplexity_of_the_held_out_text(golden: Golden, program: Program, protocol: str) -> None:
    """Within 0.01 % as a whole; the chunks' likelihoods within 0.02 nats of ~1000, so that errors cannot cancel."""
    expected = json.loads((golden.folder / "ppl.json").read_text())[protocol]
    ids = json.loads((golden.folder.parent / "heldout_token_ids.json").read_text())
    size, total = expected["chunk_tokens"], 0.0
    for index, first in enumerate(range(0, len(ids), size)):
        chunk = ids[first : first + size]
        chunk_nll = nll(program.logits([BOS, *chunk])[:-1], chunk)
        assert chunk_nll == pytest.approx(expected["nll_per_chunk"][index], abs=0.02), f"chunk {index}"
        total += chunk_nll
    assert len(ids) == expected["n_tokens"]
    assert math.exp(total / len(ids)) == pytest.approx(expected["perplexity"], rel=1e-4)
