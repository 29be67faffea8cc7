"""The numbers that a matrix of weights stands for: float32 tensors, or the float type that they are stored in.

Whole matrices are dequantised by TensorRT's own layer, to float32: the scales stay as the checkpoint has them, and what
is multiplied with activations is rounded once. TensorRT computes the layer, the cast and what else is done to each
number in one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK


def fp8_blocks(emitter: Emitter, weight: ITensor, scale: ITensor) -> ITensor:
    """float8 e4m3 [N, K] with scales [ceil(N/128), ceil(K/128)] -> float32 [N, K]."""
    return _dequantise(emitter, weight, scale, [BLOCK, BLOCK])


def int_groups(
    emitter: Emitter, weight: ITensor, scale: ITensor, offset: ITensor | None, bits: int, width: int
) -> ITensor:
    """weight * scale - offset in groups along K: float32 [N, K].

    Args:
        weight: Signed integers [N, G*g] of int8 or int4; the last group may be filled up beyond K.
        scale: float32 [N, G].
        offset: float32 [N, G], (zero point - middle) * scale; None where every zero point is the middle.
        width: K.
    """
    rows, filled = weight.shape
    groups = int(scale.shape[1])
    # Of int4 TensorRT reads the block off the scale's shape, and takes no other word for it.
    values = _dequantise(emitter, weight, scale, [1, filled // groups] if bits == 8 else None)
    if offset is not None:
        values = in_groups(emitter, values, groups)
        values = emitter.sub(values, emitter.unsqueeze(offset, [2]))
        values = emitter.reshape(values, [int(rows), int(filled)])
    return values if filled == width else emitter.slice(values, [0, 0], [int(rows), width])


def in_groups(emitter: Emitter, x: ITensor, groups: int) -> ITensor:
    """[..., K] -> [..., G, K/G]."""
    lead = [emitter.dim(x, axis) for axis in range(len(x.shape) - 1)]
    return emitter.reshape(x, [*lead, groups, int(x.shape[-1]) // groups])


def flat(emitter: Emitter, x: ITensor) -> ITensor:
    """[..., K] -> [T, K]."""
    return x if len(x.shape) == 2 else emitter.reshape(x, [-1, int(x.shape[-1])])


def like_flat(emitter: Emitter, y: ITensor, x: ITensor) -> ITensor:
    """[T, N] -> [..., N], the leading axes as those of `x`: undoes `flat`."""
    if len(x.shape) == 2:
        return y
    lead = [emitter.dim(x, axis) for axis in range(len(x.shape) - 1)]
    return emitter.reshape(y, [*lead, int(y.shape[-1])])


def _dequantise(emitter: Emitter, weight: ITensor, scale: ITensor, block: Sequence[int] | None) -> ITensor:
    if all(size == 1 for size in scale.shape):
        # One scale for all must be a scalar.
        scale, block = emitter.reshape(scale, []), None
    layer = emitter.named(emitter.network.add_dequantize(weight, scale, emitter.float32), "dequantise")
    if block is not None:
        layer.block_shape = emitter.trt.Dims(list(block))
    return layer.get_output(0)
