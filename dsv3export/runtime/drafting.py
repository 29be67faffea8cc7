"""Drafts of the MTP layer for a sequence that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from dsv3export.errors import RequestError
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.session import DraftingSession, Logits, Session


def draft_logits(session: DraftingSession, token_ids: Sequence[int], chunk: int) -> Logits:
    """Row i is a guess for token i+2, from the hidden state of token i and token i+1: float32[len - 1, vocab].

    Args:
        chunk: How many tokens are computed at once.

    Raises RequestError for fewer than two tokens, and where the session has no MTP layer.
    """
    count = len(token_ids) - 1
    if count < 1:
        raise RequestError("drafts", expected="at least 2 tokens", got=str(len(token_ids)))
    cache, drafts = LatentCache(session.cache_layout, 1, count), LatentCache(session.draft_cache_layout, 1, count)
    ids, slot = np.array([token_ids], np.int64), range(1)
    result = np.empty((count, session.vocab_size), np.float32)
    for first in range(0, count, chunk):
        end, start = min(first + chunk, count), np.array([first], np.int64)
        _, hidden = session.step_hidden(ids[:, first:end], start, cache, slot, np.zeros(0, np.int64))
        rows = np.arange(end - first)
        result[first:end], _ = session.draft(hidden, ids[:, first + 1 : end + 1], start, drafts, slot, rows)
    return result


def can_draft(session: Session) -> TypeGuard[DraftingSession]:
    """Whether its backend knows MTP layers; whether the model has one, the first draft tells."""
    return hasattr(type(session), "draft")


def drafter(session: Session, where: str = "this engine") -> DraftingSession:
    """The session, as one that drafts. Raises RequestError where its backend knows no MTP layer."""
    if not can_draft(session):
        raise no_drafts(where)
    return session


def no_drafts(where: str) -> RequestError:
    """The error of a model that cannot draft."""
    return RequestError(
        f"drafts of {where}", expected="a model with an MTP layer", got="none",
        fix="Build the engine without --no-mtp and --layers, from a checkpoint with num_nextn_predict_layers > 0.",
    )  # fmt: skip
