"""The bytes of integer weights as ONNX Runtime's MatMulNBits and QMoE read them (weights_prepacked=0).

Two 4-bit numbers share a byte: the one with the even index along K is the low half. Rows begin on whole bytes.
"""

from __future__ import annotations

import numpy as np

from dsv3export.graphs.quantise.int_weight import UInt8, middle


def pack(q: UInt8, bits: int, group: int | None) -> UInt8:
    """Numbers [..., N, K] -> bytes [..., N, G * group * bits / 8].

    K is filled up to whole groups with 2^(bits-1); what stands there takes no part in the arithmetic. Reshaped to
    [N, G, group * bits / 8] this is MatMulNBits' ``B``; QMoE takes it as it is.

    Args:
        bits: 4 or 8.
        group: As the weight was quantised; None = one group of K.
    """
    return _pack_rows(_fill(q, group or q.shape[-1], middle(bits)), bits)


def unpack(packed: UInt8, bits: int, width: int) -> UInt8:
    """Bytes [..., N, B] -> numbers [..., N, width]; the inverse of `pack` for K = `width`."""
    if bits == 8:
        return np.ascontiguousarray(packed[..., :width])
    both = np.stack([packed & 0xF, packed >> 4], axis=-1)
    return np.ascontiguousarray(both.reshape(*packed.shape[:-1], -1)[..., :width])


def pack_zero_points(zero_point: UInt8, bits: int) -> UInt8:
    """Zero points [..., N, G] -> bytes [..., N, ceil(G * bits / 8)]; `unpack` with width G is the inverse."""
    return _pack_rows(zero_point, bits)


def _pack_rows(numbers: UInt8, bits: int) -> UInt8:
    if bits == 8:
        return np.ascontiguousarray(numbers)
    whole = _fill(numbers, 2, 0)
    packed: UInt8 = np.bitwise_or(whole[..., 0::2], whole[..., 1::2] << np.uint8(4))
    return packed


def _fill(numbers: UInt8, multiple: int, value: int) -> UInt8:
    missing = -numbers.shape[-1] % multiple
    if not missing:
        return numbers
    return np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, missing)], constant_values=value)
