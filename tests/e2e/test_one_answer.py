"""With `invariant`, a prompt has one greedy answer: alone, in a batch, in chunks, with drafts, on a kept prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export import Engine
from tests.e2e.goldens import Golden

pytestmark = pytest.mark.usefixtures("native_library")
NEW = 48
WAYS: dict[str, dict[str, Any]] = {
    "a ragged batch": {"max_batch": 8},
    "chunks of 7": {"max_batch": 3, "prefill_chunk": 7},
    "two drafts a step": {"max_batch": 3, "speculate": 2},
    "prefixes kept": {"max_batch": 3, "prefix_cache": 1 << 24},
    "all of it, two threads": {
        "max_batch": 4, "prefill_chunk": 16, "speculate": 1, "prefix_cache": 1 << 24, "threads": 2
    },
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_goldens_have_one_answer(precision: str, engine_of: Callable[[str], Path], bf16_golden: Golden) -> None:
    prompts = [bf16_golden.ids(prompt) for prompt in range(8)]
    alone = _load(engine_of(precision))
    expected = [_answers(alone, [prompt])[0] for prompt in prompts]
    if precision == "fp32":
        assert expected == [prompt["greedy_ids"][:NEW] for prompt in bf16_golden.prompts]
    for way, options in WAYS.items():
        engine = _load(engine_of(precision), **options)
        for turn in range(2):  # in the second one prefixes are there
            assert _answers(engine, prompts) == expected, f"{way}, turn {turn}"


def _load(path: Path, **options: Any) -> Engine:
    return Engine.load(path, **{"threads": 1, "prefix_cache": None, **options}, invariant=True)


def _answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    return [result.token_ids for result in engine.generate(prompts, max_new_tokens=NEW, ignore_eos=True)]
