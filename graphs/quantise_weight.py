"""A float weight as the packed parts that dsv3::LinearInt and dsv3::MoEExpertsInt take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.errors import InternalError
from dsv3export.graphs.quantise import IntWeight, pack, pack_zero_points, quantise, split_groups

INT_PARTS = ("int_q", "int_scale", "int_zero_point")
# The mean of x x^T, float32 [K, K], over what the i-th matrix of a weight was given during calibration.
HessianOf = Callable[[int], NDArray[np.float32]]
# Of a bank's Hessians so many numbers are held at once; an expert of DeepSeek-V3 has more than that alone.
_HESSIAN_ELEMENTS = 1 << 24


def quantise_weight(
    weight: NDArray[np.float32], params: Mapping[str, Any], name: str, hessian_of: HessianOf | None = None
) -> dict[str, NDArray[Any]]:
    """The parts of a weight [..., N, K], by name.

    Args:
        params: ``bits``; ``group``, the columns that share a stored scale; ``per_channel``, whether all groups of a
            row have the same scale; ``symmetric``; ``method``.
        name: For messages.
        hessian_of: What the method gptq needs to know of the weight's inputs.
    """
    bits, group, per_channel = params["bits"], params["group"], params["per_channel"]
    if not weight.flags.writeable:
        weight = weight.copy()  # torch warns of a view of the checkpoint
    if params["method"] == "gptq":
        quantised = _calibrated(weight, params, name, hessian_of)
    else:
        shared = None if per_channel else group
        quantised = quantise(weight, bits, shared, params["symmetric"], method=params["method"], name=name)
    if per_channel:
        quantised = split_groups(quantised, None, group)
    parts: dict[str, NDArray[Any]] = {"int_q": pack(quantised.q, bits, group), "int_scale": quantised.scale}
    if quantised.zero_point is not None:
        parts["int_zero_point"] = pack_zero_points(quantised.zero_point, bits)
    return parts


def _calibrated(
    weight: NDArray[np.float32], params: Mapping[str, Any], name: str, hessian_of: HessianOf | None
) -> IntWeight:
    """A weight [N, K] or a bank [E, N, K] by gptq, as many matrices at once as their Hessians are small."""
    if hessian_of is None:
        raise InternalError(f"{name} is to be quantised by gptq without calibration")
    group = None if params["per_channel"] else params["group"]
    if weight.ndim == 2:
        return quantise(weight, params["bits"], group, params["symmetric"], hessian_of(0), "gptq", name)
    step = max(1, _HESSIAN_ELEMENTS // weight.shape[-1] ** 2)
    parts = []
    for begin in range(0, len(weight), step):
        matrices = weight[begin : begin + step]
        hessian = np.stack([hessian_of(begin + i) for i in range(len(matrices))])
        parts.append(quantise(matrices, params["bits"], group, params["symmetric"], hessian, "gptq", name))
    zero_points = [part.zero_point for part in parts if part.zero_point is not None]
    return IntWeight(
        np.concatenate([part.q for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate(zero_points) if zero_points else None,
    )
