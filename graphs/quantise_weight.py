"""A float weight as the packed parts that dsv3::LinearInt and dsv3::MoEExpertsInt take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.graphs.quantise import pack, pack_zero_points, quantise, split_groups

INT_PARTS = ("int_q", "int_scale", "int_zero_point")


def quantise_weight(weight: NDArray[np.float32], params: Mapping[str, Any], name: str) -> dict[str, NDArray[Any]]:
    """The parts of a weight [..., N, K], by name.

    Args:
        params: ``bits``; ``group``, the columns that share a stored scale; ``per_channel``, whether all groups of a
            row have the same scale; ``symmetric``; ``method``.
        name: For messages.
    """
    bits, group, per_channel = params["bits"], params["group"], params["per_channel"]
    quantised = quantise(
        weight, bits, None if per_channel else group, params["symmetric"], None, params["method"], name
    )
    if per_channel:
        quantised = split_groups(quantised, None, group)
    parts: dict[str, NDArray[Any]] = {"int_q": pack(quantised.q, bits, group), "int_scale": quantised.scale}
    if quantised.zero_point is not None:
        parts["int_zero_point"] = pack_zero_points(quantised.zero_point, bits)
    return parts
