"""The multi-token-prediction layer's drafts, of the executor and of the engine."""

from __future__ import annotations

import json

import pytest

from tests.e2e.goldens import Golden, Program
from tests.support.compare import LOGITS, assert_close


@pytest.mark.parametrize("prompt", range(8))
def test_draft_after_the_first_greedy_token(golden: Golden, program: Program, prompt: int) -> None:
    ids = [*golden.ids(prompt), golden.prompts[prompt]["greedy_ids"][0]]
    drafts = program.draft_logits(ids)
    assert_close(drafts[-1], golden.arrays("mtp")["draft_last_logits"][prompt], LOGITS, f"prompt {prompt}")
    assert drafts[-1].argmax() == golden.prompts[prompt]["mtp_draft_id"]


def test_drafts_of_all_pairs(golden: Golden, program: Program) -> None:
    drafts = program.draft_logits([*golden.ids(3), golden.prompts[3]["greedy_ids"][0]])
    assert_close(drafts, golden.arrays("mtp")["p3_draft_logits_all"], LOGITS, "drafts of prompt 3")


@pytest.mark.parametrize("chunk", [0, 11, 22])
def test_acceptance_on_held_out_text(golden: Golden, program: Program, chunk: int) -> None:
    """How many drafts the trunk accepts on the first, a middle and the short last of the 23 chunks."""
    expected = json.loads((golden.folder / "mtp.json").read_text())["teacher_forced_heldout"]
    size = expected["chunk_tokens"]
    held_out = json.loads((golden.folder.parent / "heldout_token_ids.json").read_text())
    ids = [0, *held_out[chunk * size : (chunk + 1) * size]]
    # The goldens leave out the draft for the token behind the chunk's end.
    trunk = program.logits(ids)[1:-1].argmax(axis=1)
    drafts = program.draft_logits(ids)[:-1].argmax(axis=1)
    accepted, drafted = expected["per_chunk_accepted_drafts"][chunk]
    assert len(drafts) == drafted
    assert int((trunk == drafts).sum()) == accepted
