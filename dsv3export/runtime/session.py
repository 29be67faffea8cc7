"""What the runtime asks of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

if TYPE_CHECKING:
    from dsv3export.runtime.distributed.watch import Watch
    from dsv3export.runtime.distributed.worker import RankFigures
    from dsv3export.runtime.kernel_choice import CpuKernels

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Logits = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Hidden = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class Session(Protocol):
    """A loaded engine.

    `cache_layout` is that of the latent cache that `step` wants. `cache_on_host` says whether steps read and write the
    arrays of a `LatentCache` themselves, so that rows may be copied between them; on a device they have buffers there.
    """

    @property
    def cache_layout(self) -> CacheLayout: ...

    @property
    def cache_on_host(self) -> bool: ...

    @property
    def vocab_size(self) -> int: ...

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """Runs S tokens of B sequences and writes their latents into the cache, in place.

        Args:
            input_ids: int64[B, S]. Rows may be padded on the right: what a padded token leaves in the cache lies
                behind the sequence's valid rows and is overwritten by the next step.
            start: int64[B], cached tokens of each sequence before this step; token (b, s) has position
                start[b] + s and attends to the positions up to its own. start[b] + S must not exceed the capacity.
            cache: Only the rows start[b] .. start[b] + S - 1 of the given slots change; `lengths` is not touched.
            slots: B consecutive slots of the cache.
            logit_rows: int64[R], rows of the flattened [B * S] tokens.

        Returns:
            Logits of those rows, float32[R, vocab_size].
        """
        ...


@runtime_checkable
class BoundedSession(Protocol):
    """A session whose engine was built for sequences of at most `capacity` tokens."""

    @property
    def capacity(self) -> int: ...


@runtime_checkable
class CpuSession(Protocol):
    """A session that may compute on the CPU; `cpu_kernels` says with which kernels, None where it does not."""

    @property
    def cpu_kernels(self) -> CpuKernels | None: ...


@runtime_checkable
class PipelinedSession(Session, Protocol):
    """A session of several stages, which work at the same time on steps of different slots.

    `depth` is how many steps keep all of them busy.
    """

    @property
    def depth(self) -> int: ...

    def begin_step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Callable[[], Logits]:
        """Begins a `step` and returns what waits for its logits; steps run in the order in which they were begun."""
        ...


@runtime_checkable
class CopyingSession(Session, Protocol):
    """A session that copies rows between latent caches itself, as not all of them are in this process's memory."""

    def copy_rows(
        self, cache: LatentCache, slot: int, start: int, source: LatentCache, source_slot: int, rows: range
    ) -> None:
        """As `LatentCache.copy_rows` of `cache`, everywhere, behind the steps that were begun."""
        ...


@runtime_checkable
class RankedSession(Protocol):
    """A session whose steps run on several ranks; `watch` notices when one is gone."""

    @property
    def watch(self) -> Watch | None: ...

    def figures(self) -> list[RankFigures]:
        """What each rank has done so far."""
        ...

    def close(self) -> None:
        """Ends the other ranks."""
        ...


class DraftingSession(Session, Protocol):
    """A session that also has the model's MTP layer, which drafts the token after the next.

    A trunk that has just predicted token i+1 from token i gives its hidden state to the MTP layer, which guesses token
    i+2; and with its own hidden state and that guess, token i+3, and so on, less and less well.
    """

    @property
    def draft_cache_layout(self) -> CacheLayout:
        """Of the MTP layer's own latent cache. Raises RequestError where the model has no such layer."""
        ...

    def step_hidden(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> tuple[Logits, Hidden]:
        """As `step`; also the hidden state of all tokens after the final norm, float32[B, S, D]."""
        ...

    def draft(
        self, hidden: Hidden, next_ids: IntArray, start: IntArray, cache: LatentCache, slots: range,
        logit_rows: IntArray,
    ) -> tuple[Logits, Hidden]:  # fmt: skip
        """Runs the MTP layer over S pairs of B sequences and writes their latents into its cache, in place.

        Args:
            hidden: float32[B, S, D], of token i: from `step_hidden`, or of an earlier draft.
            next_ids: int64[B, S], token i+1.
            start: int64[B], pairs that the cache holds before; the pair (b, s) has position start[b] + s, that of
                its token i.
            cache: Of `draft_cache_layout`.
            slots, logit_rows: As for `step`.

        Returns:
            Logits of token i+2, float32[R, vocab_size], and what takes the place of `hidden` for the pair of tokens
            i+1 and i+2, float32[B, S, D].
        """
        ...
