"""What the runtime asks of a backend."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Logits = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


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
