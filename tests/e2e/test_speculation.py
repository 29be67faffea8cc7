"""Self-speculation on the trained model: the same tokens, and as many drafts accepted as in the independent program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3export.runtime.batching.speculation import SpeculationStats
from dsv3export.runtime.engine import Engine
from tests.e2e.goldens import Golden, greedy


def test_free_running_acceptance_is_the_golden_one(golden: Golden, engine: Engine) -> None:
    expected = json.loads((golden.folder / "mtp.json").read_text())["free_running"]
    stats = SpeculationStats()
    prompts = [run["prompt_ids"] for run in expected["runs"]]
    new = expected["new_tokens_per_prompt"]
    tokens = greedy(engine.session, prompts, new, slots=1, speculate=1, stats=stats)
    assert tokens == [run["greedy_ids"][:new] for run in expected["runs"]]
    # The golden program also drafts behind a sequence's last but one token: one draft a prompt, accepted or not.
    assert 0 <= expected["drafts"] - stats.drafted <= len(prompts)
    assert 0 <= expected["accepted"] - stats.accepted <= len(prompts)


@pytest.mark.parametrize("drafts", [1, 3])
@pytest.mark.parametrize("slots", [1, 8])
def test_golden_tokens_with_drafts(golden: Golden, engine: Engine, drafts: int, slots: int) -> None:
    prompts = [golden.ids(prompt) for prompt in range(8)]
    expected = [golden.prompts[prompt]["greedy_ids"] for prompt in range(8)]
    assert greedy(engine.session, prompts, len(expected[0]), slots, chunk=7, speculate=drafts) == expected


def test_prefixes_and_drafts_together(golden: Golden, engine_path: Path) -> None:
    loaded = Engine.load(engine_path, threads=1, prefix_cache=1 << 22, speculate=2, max_batch=3)
    prompts = [golden.ids(prompt) for prompt in range(8)]
    expected = [golden.prompts[prompt]["greedy_ids"] for prompt in range(8)]
    for _ in range(2):
        results = loaded.generate(prompts, len(expected[0]), ignore_eos=True)
        assert [result.token_ids for result in results] == expected
    assert loaded.speculation.accepted > 100
    assert loaded.prefixes is not None and loaded.prefixes.stats.found > 100
