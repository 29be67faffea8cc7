"""Self-speculation: the MTP layer drafts tokens, the trunk verifies all of them in one step.

Of a slot whose trunk cache holds L tokens, t_0 .. t_(L-1), and whose newest token t_L is not computed yet, the MTP
layer needs the pairs (hidden state of t_i, t_(i+1)) for i < L. Its own cache holds the first `lengths` of them; the
hidden states of the others are kept until the next draft. Pairs of drafted tokens are written behind and forgotten: the
next draft overwrites them with the true ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsv3export.errors import RequestError
from dsv3export.runtime.drafting import drafter
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.sampling import Drafted
from dsv3export.runtime.session import DraftingSession, Hidden, IntArray, Logits, Session

_NO_ROWS: IntArray = np.zeros(0, np.int64)


MAX_DRAFTS = 8


def checked_drafts(session: Session, drafts: int) -> int:
    """`drafts`. Raises RequestError where it is out of range, or the engine has no MTP layer."""
    if not 0 <= drafts <= MAX_DRAFTS:
        raise RequestError("speculate", expected=f"0 to {MAX_DRAFTS} tokens", got=str(drafts))
    if drafts:
        _ = drafter(session).draft_cache_layout
    return drafts


@dataclass
class SpeculationStats:
    """Counts since the start: tokens drafted, and how many of them the trunk accepted."""

    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float | None:
        """The share that was accepted; None before the first draft."""
        return self.accepted / self.drafted if self.drafted else None


@dataclass(frozen=True)
class Drafting:
    """What a slot's draft needs: its tokens up to the newest, how many drafts, and how to choose one from logits."""

    tokens: Sequence[int]
    count: int
    choose: Callable[[Logits], Drafted]


class Speculator:
    """The MTP layer's side of a batch.

    Args:
        session: Must have an MTP layer.
        drafts: Tokens to draft for a step, each from the one before.
        slots, capacity: As of the trunk's cache.
        stats: Where to count.

    Raises:
        RequestError: The engine has no MTP layer.
    """

    def __init__(
        self, session: DraftingSession, drafts: int, slots: int, capacity: int, stats: SpeculationStats
    ) -> None:
        self.session, self.drafts, self.stats = session, drafts, stats
        # Padded and drafted pairs lie behind the valid ones.
        self.cache = LatentCache(session.draft_cache_layout, slots, capacity + 2 * drafts + 1)
        self._pending: dict[int, Hidden] = {}

    def begin(self, slot: int, pairs: int) -> None:
        """A sequence gets a slot, of which `pairs` are in the MTP layer's cache already."""
        self.cache.lengths[slot] = pairs
        self._pending.pop(slot, None)

    def computed(self, slot: int, hidden: Hidden) -> None:
        """The trunk has computed further tokens of a slot: float32[count, D]."""
        before = self._pending.get(slot)
        self._pending[slot] = hidden.copy() if before is None else np.concatenate([before, hidden])

    def verified(self, slot: int, length: int, right: int) -> None:
        """Of what the trunk computed, its first `length` tokens are valid; `right` of them had been drafted."""
        self._pending[slot] = self._pending[slot][: length - int(self.cache.lengths[slot])]
        self.stats.accepted += right

    def prefill(self, slot: int, tokens: Sequence[int]) -> None:
        """Computes the pairs whose second token is known."""
        start, hidden = int(self.cache.lengths[slot]), self._pending[slot]
        count = min(len(hidden), len(tokens) - start - 1)
        if count > 0:
            ids = np.array([tokens[start + 1 : start + 1 + count]], np.int64)
            run = range(slot, slot + 1)
            self.session.draft(hidden[None, :count], ids, np.array([start]), self.cache, run, _NO_ROWS)
            self.cache.lengths[slot] += count
            self._pending[slot] = hidden[count:]

    def propose(self, run: range, wanted: Mapping[int, Drafting]) -> dict[int, list[Drafted]]:
        """Drafts for the slots of a run that are in `wanted`, behind their newest tokens."""
        proposed: dict[int, list[Drafted]] = {slot: [] for slot in wanted}
        active = {slot: each for slot, each in wanted.items() if each.count > 0}
        hidden = self._catch_up(run, active, proposed)
        for place in range(1, self.drafts):
            active = {slot: each for slot, each in active.items() if each.count > place}
            if not active:
                break
            ids = np.zeros((len(run), 1), np.int64)
            for slot in active:
                ids[slot - run.start, 0] = proposed[slot][-1].token
            start = self.cache.lengths[run.start : run.stop] + (place - 1)
            rows = np.array([slot - run.start for slot in active])
            logits, hidden = self.session.draft(hidden, ids, start, self.cache, run, rows)
            for (slot, each), row in zip(active.items(), logits, strict=True):
                proposed[slot].append(each.choose(row))
        self.stats.drafted += sum(len(drafts) for drafts in proposed.values())
        return proposed

    def _catch_up(self, run: range, active: Mapping[int, Drafting], proposed: Mapping[int, list[Drafted]]) -> Hidden:
        """Computes the pairs that are due, and the first draft from the last of them; hidden states, [B, 1, D]."""
        if not active:
            return np.zeros((len(run), 1, 0), np.float32)
        counts = {slot: len(self._pending[slot]) for slot in active}
        longest, width = max(counts.values()), next(iter(self._pending.values())).shape[1]
        hidden = np.zeros((len(run), longest, width), np.float32)
        ids = np.zeros((len(run), longest), np.int64)
        start = self.cache.lengths[run.start : run.stop].copy()
        for slot, count in counts.items():
            row, first = slot - run.start, int(self.cache.lengths[slot]) + 1
            hidden[row, :count] = self._pending[slot]
            ids[row, :count] = active[slot].tokens[first : first + count]
        last = np.array([(slot - run.start) * longest + count - 1 for slot, count in counts.items()])
        logits, drafted = self.session.draft(hidden, ids, start, self.cache, run, last)
        following = np.zeros((len(run), 1, drafted.shape[2]), np.float32)
        for (slot, count), row in zip(counts.items(), logits, strict=True):
            self.cache.lengths[slot] += count
            del self._pending[slot]
            following[slot - run.start, 0] = drafted[slot - run.start, count - 1]
            proposed[slot].append(active[slot].choose(row))
        return following
