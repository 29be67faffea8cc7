"""dsv3::LatentAppendFp8 in standard ONNX ops, on a cache of the e4m3 numbers' bits as int8.

ONNX Runtime neither scatters nor slices float8, so the bits travel as int8. They become numbers by way of float16:
e4m3's sign, exponent and mantissa, moved to the places that float16 has for them, are the number times 2^-8, subnormals
included. That is exact, and several times as fast as a table of 256 numbers or ONNX Runtime's own cast from float8.
"""

from __future__ import annotations

from dsv3export.plugins.latent_append_half.op import LONGEST
from dsv3export.plugins.registry import Attributes, Dims

LARGEST = 448.0
TINY = 1e-30  # stands for the amax of a group of zeros
# float16's exponent has a bias of 15, e4m3's of 7.
_BIAS = 256.0


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text."""
    return f"""
LatentAppendFp8 (cache, side, kv_c, k_pe, start) => (updated, updated_side, latent) {{
    whole_shape = Constant <value_ints = [0, 0, -1]> ()
    grouped_shape = Constant <value_ints = [0, 0, {dims["G"]}, -1]> ()
{_write(dims["G"])}
{LONGEST}
{_read(dims["Dr"], dims["G"])}
}}
"""


def _write(groups: int) -> str:
    """ONNX text: `updated` and `updated_side`."""
    return f"""
    grouped = Reshape (kv_c, grouped_shape)
    last = Constant <value_ints = [-1]> ()
    sizes = Abs (grouped)
    amax = ReduceMax <keepdims = 1> (sizes, last)
    tiny = Constant <value_float = {TINY!r}> ()
    positive = Max (amax, tiny)
    largest = Constant <value_float = {LARGEST!r}> ()
    exact_scale = Div (positive, largest)
    scale_half = Cast <to = 16> (exact_scale)
    scale = Cast <to = 1> (scale_half)
    fractions = Div (grouped, scale)
    float8 = Cast <to = 17, saturate = 1> (fractions)
    rounded = Cast <to = 1> (float8)

    down = Constant <value_float = {1 / _BIAS!r}> ()
    small = Mul (rounded, down)
    small_half = Cast <to = 10> (small)
    half_bits = BitCast <to = 5> (small_half)
    wide_bits = Cast <to = 6> (half_bits)
    shift = Constant <value = int32 {{128}}> ()
    shifted = Div (wide_bits, shift)
    nought = Constant <value = int32 {{0}}> ()
    negative = Less (shifted, nought)
    with_sign = Add (shifted, shift)
    code = Where (negative, with_sign, shifted)
    codes = Cast <to = 3> (code)
    code_rows = Reshape (codes, whole_shape)
    updated = TensorScatter <axis = 1, mode = "linear"> (cache, code_rows, start)

    scales_shape = Constant <value_ints = [0, 0, {groups}]> ()
    scales = Reshape (scale, scales_shape)
    side_exact = Concat <axis = -1> (k_pe, scales)
    side_rows = Cast <to = 16> (side_exact)
    updated_side = TensorScatter <axis = 1, mode = "linear"> (side, side_rows, start)"""


def _read(rope: int, groups: int) -> str:
    """ONNX text: `latent`."""
    return f"""
    seen = Slice (updated, zero, longest, one)
    seen_wide = Cast <to = 5> (seen)
    up = Constant <value = int16 {{128}}> ()
    moved = Mul (seen_wide, up)
    sign_and_rest = Constant <value = int16 {{-16512}}> ()
    kept = BitwiseAnd (moved, sign_and_rest)
    seen_half = BitCast <to = 10> (kept)
    seen_numbers = Cast <to = 1> (seen_half)
    seen_grouped = Reshape (seen_numbers, grouped_shape)

    seen_side_half = Slice (updated_side, zero, longest, one)
    seen_side = Cast <to = 1> (seen_side_half)
    side_widths = Constant <value_ints = [{rope}, {groups}]> ()
    seen_pe, seen_scales = Split <axis = 2> (seen_side, side_widths)
    three = Constant <value_ints = [3]> ()
    scale_columns = Unsqueeze (seen_scales, three)
    bias = Constant <value_float = {_BIAS!r}> ()
    units = Mul (scale_columns, bias)
    values = Mul (seen_grouped, units)
    seen_latent = Reshape (values, whole_shape)
    latent = Concat <axis = 2> (seen_latent, seen_pe)"""
