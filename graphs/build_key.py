"""The key of a build: equal for two builds exactly if what they write into their weight files is equal."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from dsv3export import __version__
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.work import Stage
from dsv3export.graphs.weight_expr import WeightExpr

# Packages whose arithmetic the bytes come of.
_PACKAGES = ("numpy", "torch", "ml_dtypes")


def build_key(
    checkpoint: Checkpoint,
    plan: Sequence[PlannedWeight],
    exprs: Mapping[str, WeightExpr],
    stages: Sequence[Stage],
    calibration: Sequence[Sequence[int]] | None,
) -> str:
    """SHA-256 over program and packages, checkpoint, the expression of each weight, units and calibration tokens.

    Weight bytes are not read: a checkpoint file counts as altered when its size, header or modification time has
    changed. The recipe takes part through the expressions.
    """
    facts = {
        "program": [__version__, platform.machine(), *(version(package) for package in _PACKAGES)],
        "checkpoint": checkpoint.fingerprint(),
        "times": {name: shard.file.stat().st_mtime_ns for name, shard in checkpoint.shards.items()},
        "weights": [
            [weight.key, weight.dtype, weight.shape, repr(exprs[weight.key]), bool(weight.reference)]
            for weight in plan
        ],
        "units": [
            [(part.weight.key, part.rows) for part in unit.parts] for stage in stages for unit in stage.units
        ],
        "calibration": calibration,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
