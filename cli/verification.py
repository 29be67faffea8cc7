"""`inspect --verify`: reads every weight."""

from __future__ import annotations

import numpy as np

from dsv3export.checkpoint import Checkpoint
from dsv3export.errors import CheckpointError
from dsv3export.progress import Progress

SCALE_SUFFIX = "_scale_inv"


def verify_values(checkpoint: Checkpoint, progress: Progress) -> None:
    """Reads all weights and scales. Raises CheckpointError at the first that is infinite or NaN, with its place."""
    names = [name for name in checkpoint.tensors if not name.endswith(SCALE_SUFFIX)]
    progress.start("verifying", sum(checkpoint.tensors[name].nbytes for name in names), "bytes")
    for name in names:
        info = checkpoint.tensors[name]
        finite = np.isfinite(checkpoint.float32(name))
        if not finite.all():
            place = [int(index) for index in np.argwhere(~finite)[0]]
            raise CheckpointError(f'{info.file}: tensor "{name}"{place}', expected="a finite number", got="inf or NaN")
        progress.advance(info.nbytes)
    progress.finish()
