"""The latent cache does not change what is computed: any way of cutting a sequence into steps gives the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dsv3export.runtime.generation import prompt_logits
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import Session
from tests.e2e.goldens import Array, Golden
from tests.support.compare import LOGITS, assert_close

# Two orders of summation of the same float32 program.
SAME = LOGITS / 4


def new_cache(session: Session, slots: int, capacity: int) -> LatentCache:
    return LatentCache(session.cache_layout, slots, capacity)


def step(session: Session, cache: LatentCache, rows: Sequence[Sequence[int]], start: Sequence[int]) -> Array:
    """One step over all slots: logits [slots, S, vocab]."""
    ids = np.array(rows, np.int64)
    logits = session.step(ids, np.array(start, np.int64), cache, range(len(rows)), np.arange(ids.size))
    return logits.reshape(*ids.shape, -1)


def test_decoding_equals_full_recompute_at_every_position(golden: Golden, session: Session) -> None:
    """Prompt 5: 64 tokens, one step each, against one pass over all."""
    ids = golden.ids(5)
    cache = new_cache(session, 1, len(ids) + 5)
    stepwise = [step(session, cache, [[token]], [position])[0, 0] for position, token in enumerate(ids)]
    assert_close(stepwise, prompt_logits(session, ids), SAME, "logits")


def test_decoding_after_a_long_prompt_equals_full_recompute(golden: Golden, session: Session) -> None:
    """Prompt 7: 300 tokens, the last 8 decoded; beyond one prefill chunk and into YaRN's stretched range."""
    ids = golden.ids(7)
    cache = new_cache(session, 1, 400)
    step(session, cache, [ids[:292]], [0])
    stepwise = [step(session, cache, [[ids[position]]], [position])[0, 0] for position in range(292, 300)]
    assert_close(stepwise, prompt_logits(session, ids, 300)[292:], SAME, "logits")


@pytest.mark.parametrize("chunk", [1, 3, 16, 63, 64, 128])
def test_chunked_prefill_equals_whole_prefill(golden: Golden, session: Session, chunk: int) -> None:
    ids = golden.ids(6)[: 48 if chunk == 1 else None]
    assert_close(prompt_logits(session, ids, chunk), prompt_logits(session, ids, len(ids)), SAME, "logits")


def test_a_ragged_batch_equals_its_sequences_alone(golden: Golden, session: Session) -> None:
    """Four sequences of different lengths in one cache, decoded together from different starts."""
    prompts = [golden.ids(i) for i in (2, 3, 4, 5)]
    cache = new_cache(session, 4, 80)
    for slot, prompt in enumerate(prompts):
        one = np.array([prompt[:-1]], np.int64)
        session.step(one, np.zeros(1, np.int64), cache, range(slot, slot + 1), np.zeros(0, np.int64))
    together = step(session, cache, [[prompt[-1]] for prompt in prompts], [len(prompt) - 1 for prompt in prompts])
    for prompt, row in zip(prompts, together, strict=True):
        assert_close(row[0], prompt_logits(session, prompt)[-1], SAME, f"{len(prompt)} tokens")


def test_a_right_padded_step_equals_the_sequences_alone(golden: Golden, session: Session) -> None:
    """Padding on the right is only ever seen by padding, and the next step overwrites what it left in the cache."""
    prompts = [golden.ids(i) for i in (1, 2, 3)]
    longest = max(map(len, prompts))
    cache = new_cache(session, 3, longest + 4)
    padded = [[*prompt, *[77] * (longest - len(prompt))] for prompt in prompts]
    logits = step(session, cache, padded, [0, 0, 0])
    again = step(session, cache, [[5]] * 3, [len(prompt) for prompt in prompts])
    for slot, prompt in enumerate(prompts):
        expected = prompt_logits(session, [*prompt, 5])
        assert_close(logits[slot, : len(prompt)], expected[:-1], SAME, f"slot {slot}")
        assert_close(again[slot, 0], expected[-1], SAME, f"slot {slot} after the padding")


def test_the_goldens_padded_batch(golden: Golden, session: Session) -> None:
    """The goldens pad on the left; here the same batch is one step, padded on the right."""
    batch = golden.arrays("batch")
    prompts = [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    width = batch["input_ids"].shape[1]
    padded = [[*prompt, *[1] * (width - len(prompt))] for prompt in prompts]
    logits = step(session, new_cache(session, 4, width), padded, [0] * 4)
    last = logits[np.arange(4), [len(prompt) - 1 for prompt in prompts]]
    assert_close(last, batch["last_logits"], LOGITS, "padded")
    assert_close(last, batch["last_logits_unpadded"], LOGITS, "alone")


def test_a_step_changes_its_own_rows_of_the_cache_only(golden: Golden, session: Session) -> None:
    cache = new_cache(session, 3, 20)
    for layer in range(session.cache_layout.layers):
        cache.view(layer, range(3))[:] = 7.0
    ids = np.array([golden.ids(3)[:4]], np.int64)
    session.step(ids, np.array([9]), cache, range(1, 2), np.zeros(0, np.int64))
    for layer in range(session.cache_layout.layers):
        changed = (cache.view(layer, range(3)) != 7.0).any(axis=2)
        assert np.argwhere(changed).tolist() == [[1, 9], [1, 10], [1, 11], [1, 12]]


def test_both_programs_keep_the_same_latents(golden: Golden, executor: Session, engine_session: Session) -> None:
    ids = np.array([golden.ids(5)], np.int64)
    caches = []
    for each in (executor, engine_session):
        cache = new_cache(each, 1, 70)
        each.step(ids, np.zeros(1, np.int64), cache, range(1), np.zeros(0, np.int64))
        caches.append([cache.view(layer, range(1)) for layer in range(each.cache_layout.layers)])
    for layer, (one, other) in enumerate(zip(*caches, strict=True)):
        assert_close(one, other, SAME, f"layer {layer}")


def test_no_rows_of_logits_may_be_asked_for(golden: Golden, session: Session) -> None:
    cache = new_cache(session, 1, 4)
    none = session.step(np.array([[1, 2]]), np.zeros(1, np.int64), cache, range(1), np.zeros(0, np.int64))
    assert none.shape == (0, session.vocab_size)


def test_rows_of_logits_come_in_the_order_asked_for(golden: Golden, session: Session) -> None:
    ids = golden.ids(4)
    cache = new_cache(session, 1, len(ids))
    rows = np.array([7, 0, 7, 15])
    picked = session.step(np.array([ids]), np.zeros(1, np.int64), cache, range(1), rows)
    assert_close(picked, prompt_logits(session, ids)[rows], SAME, "logits")
