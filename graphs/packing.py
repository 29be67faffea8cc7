"""How weights are laid out for a backend: a table of packings, numpy arrays in, one array out.

A packing of banks treats each expert (first axis) on its own: it is given the whole banks or some of their experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsv3export.graphs.quantise import dequantise_blocks
from dsv3export.graphs.quantise.int_weight import middle
from dsv3export.graphs.quantise.packing import pack_zero_points, unpack
from dsv3export.graphs.weight_expr import SLICE
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK

Array = NDArray[Any]
Packing = Callable[[Sequence[Array], Mapping[str, Any]], Array]


def _interleave(arrays: Sequence[Array], _: Mapping[str, Any]) -> Array:
    """Gate and up [E, I, D] -> [E, 2I, D] with rows gate0, up0, gate1, up1, ... (ONNX Runtime's SwiGLU order)."""
    gate, up = arrays
    experts, width, hidden = gate.shape
    return np.stack([gate, up], axis=2).reshape(experts, 2 * width, hidden)


def _w_uk(arrays: Sequence[Array], dims: Mapping[str, Any]) -> Array:
    """kv_b [H*(Dn+Dv), Dc] -> W^UK [H, Dn, Dc]."""
    return np.ascontiguousarray(_per_head(arrays[0], dims)[:, : dims["Dn"]])


def _w_uv(arrays: Sequence[Array], dims: Mapping[str, Any]) -> Array:
    """kv_b [H*(Dn+Dv), Dc] -> W^UV transposed [H, Dc, Dv]."""
    return np.ascontiguousarray(_per_head(arrays[0], dims)[:, dims["Dn"] :].transpose(0, 2, 1))


def _columns_scale(weight: Array) -> Array:
    """amax / 127 of each column of [H, K, N]: [H, 1, N]; 1 for a column of zeros."""
    amax = np.abs(weight).max(axis=1, keepdims=True)
    return np.where(amax > 0, amax / np.float32(127), np.float32(1)).astype(np.float32)


def _columns_int8(weight: Array) -> Array:
    return np.rint(weight / _columns_scale(weight)).astype(np.int8)


def _head_columns(arrays: Sequence[Array], params: Mapping[str, Any]) -> Array:
    """[H, K, N] -> [K, heads*N], the matrices of `heads` heads from `first` on side by side."""
    first = params["first"]
    heads = arrays[0][first : first + params["heads"]]
    return np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(heads.shape[1], -1)


def _per_head(kv_b: Array, dims: Mapping[str, Any]) -> Array:
    return kv_b.reshape(dims["H"], -1, kv_b.shape[1])


def _blocks(arrays: Sequence[Array], dims: Mapping[str, Any]) -> Array:
    """Packed numbers [N, P], or some of the rows, -> [N, G, P/G], MatMulNBits' shape of the same bytes."""
    return arrays[0].reshape(-1, dims["G"], dims["P/G"])


def _signed_int8(arrays: Sequence[Array], _: Mapping[str, Any]) -> Array:
    """Bytes with the upper bit turned: numbers 128 less and signed; of two in a byte, the upper one 8 less."""
    return (arrays[0] ^ np.uint8(0x80)).view(np.int8)


def _signed_int4(arrays: Sequence[Array], _: Mapping[str, Any]) -> Array:
    """Bytes of two unsigned numbers each as bytes of two signed ones, 8 less: uint8, the low half first."""
    return arrays[0] ^ np.uint8(0x88)


def _zero_offset(arrays: Sequence[Array], params: Mapping[str, Any]) -> Array:
    """Scales [..., N, G] and packed zero points -> (zero point - middle) * scale, float32 [..., N, G]."""
    scale, packed = arrays
    zero_point = unpack(packed, params["bits"], scale.shape[-1]).astype(np.float32)
    return (zero_point - np.float32(middle(params["bits"]))) * scale


def _scale_rows(arrays: Sequence[Array], dims: Mapping[str, Any]) -> Array:
    """Scales of blocks of 128 x 128, [n, g] -> one per row and block: [N, g]."""
    return np.repeat(arrays[0], BLOCK, axis=0)[: dims["N"]]


def _product(arrays: Sequence[Array], _: Mapping[str, Any]) -> Array:
    """Integers times their scales, in float32."""
    return arrays[0].astype(np.float32) * arrays[1]


def _fp8_value(arrays: Sequence[Array]) -> Sequence[Array]:
    return [dequantise_blocks(arrays[0], arrays[1])]


def _slice(arrays: Sequence[Array], params: Mapping[str, Any]) -> Array:
    """Items `begin` to `end` of an axis."""
    index = [slice(None)] * arrays[0].ndim
    index[params["axis"]] = slice(params["begin"], params["end"])
    return arrays[0][tuple(index)]


def _slice_packed(arrays: Sequence[Array], params: Mapping[str, Any]) -> Array:
    """The same of 4-bit numbers along the last axis, two in a byte, the low half first."""
    numbers = unpack(arrays[0], params["bits"], params["end"])[..., params["begin"] :]
    return pack_zero_points(numbers, params["bits"])


def _rounded(packing: Packing, dtype: np.dtype[Any]) -> Packing:
    return lambda arrays, dims: packing(arrays, dims).astype(dtype)


# The float types that a leaf may be wanted in.
FLOAT_TYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
# Those that treat each row of a matrix on its own as well.
BY_ROWS = frozenset({SLICE, "slice_packed", "blocks", "signed_int8", "signed_int4", "zero_offset"})
PACKINGS: dict[str, Packing] = {
    "interleave_gate_up": _interleave,
    "blocks": _blocks,
    "head_columns": _head_columns,
    "w_uk": _w_uk,
    "w_uk_int8": lambda arrays, dims: _columns_int8(_w_uk(arrays, dims)),
    "w_uk_scale": lambda arrays, dims: _columns_scale(_w_uk(arrays, dims)),
    "w_uv": _w_uv,
    "w_uv_int8": lambda arrays, dims: _columns_int8(_w_uv(arrays, dims)),
    "w_uv_scale": lambda arrays, dims: _columns_scale(_w_uv(arrays, dims)),
    "scale_rows": _scale_rows,
    SLICE: _slice,
    "slice_packed": _slice_packed,
    "signed_int8": _signed_int8,
    "signed_int4": _signed_int4,
    "zero_offset": _zero_offset,
}
# Those that exist once per float type, in which the result is rounded.
_ROUNDED: dict[str, Packing] = {
    "as": lambda arrays, _: arrays[0],
    "interleave_gate_up": _interleave,
    "product": _product,
    "w_uk_fp8": lambda arrays, dims: _w_uk(_fp8_value(arrays), dims),
    "w_uv_fp8": lambda arrays, dims: _w_uv(_fp8_value(arrays), dims),
}
PACKINGS |= {
    f"{name}_{float_type}": _rounded(packing, dtype)
    for name, packing in _ROUNDED.items()
    for float_type, dtype in FLOAT_TYPES.items()
}
