"""Greedy continuations, token for token, alone and in ragged batches."""

from __future__ import annotations

import pytest

from dsv3export import Engine
from dsv3export.runtime.session import Session
from tests.e2e.goldens import Golden, greedy


@pytest.mark.parametrize("slots", [3, 8])
def test_greedy_continuations(golden: Golden, session: Session, slots: int) -> None:
    """With 3 slots the prompts take turns in them; with 8 all run as one ragged batch."""
    tokens = greedy(session, [golden.ids(i) for i in range(8)], 48, slots)
    for prompt, actual in zip(golden.prompts, tokens, strict=True):
        assert actual == prompt["greedy_ids"], f"{prompt['kind']}: margins {prompt['greedy_margin']}"


@pytest.mark.parametrize("prompt", range(8))
def test_engine_generates_the_golden_text(golden: Golden, engine: Engine, prompt: int) -> None:
    expected = golden.prompts[prompt]
    result = engine.generate(expected["ids"], max_new_tokens=48, ignore_eos=True)
    assert result.token_ids == expected["greedy_ids"]
    assert result.prompt_token_ids == expected["ids"]
    assert result.finish_reason == "length"


def test_engine_stops_at_the_end_of_sequence_where_the_goldens_would(golden: Golden, engine: Engine) -> None:
    for prompt, result in zip(
        golden.prompts, engine.generate([golden.ids(i) for i in range(8)], max_new_tokens=48), strict=True
    ):
        end = prompt["first_eos_index"]
        expected = prompt["greedy_ids"] if end is None else prompt["greedy_ids"][: end + 1]
        assert result.token_ids == expected
        assert result.finish_reason == ("length" if end is None else "stop")


def test_padded_batch(golden: Golden, session: Session) -> None:
    """The goldens' batch is padded on the left; a ragged batch needs no padding and gives the same tokens."""
    batch = golden.arrays("batch")
    prompts = [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert len({len(prompt) for prompt in prompts}) == 4
    assert greedy(session, prompts, 48, slots=4) == batch["greedy_ids"].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_prefill(golden: Golden, session: Session, chunk: int) -> None:
    prompts = [golden.ids(i) for i in (3, 5, 6)]
    expected = [golden.prompts[i]["greedy_ids"][:4] for i in (3, 5, 6)]
    assert greedy(session, prompts, 4, slots=3, chunk=chunk) == expected
