"""dsv3::LinearInt: a projection with 8- or 4-bit weights in groups along K."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Bytes [..., N, B] -> unsigned numbers [..., N, width]; of two 4-bit numbers the low half comes first."""
    if bits == 8:
        return packed[..., :width]
    numbers: Tensor = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)
    cut: Tensor = numbers[..., :width]
    return cut


def dequantise(qweight: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group: int, width: int) -> Tensor:
    """(q - zero point) * scale, float32 [..., N, K].

    Args:
        qweight: uint8 [..., N, G*group*bits/8].
        scale: float32 [..., N, G].
        zero_point: uint8 [..., N, ceil(G*bits/8)], or None for 2^(bits-1).
        width: K; the last group may be filled up beyond it.
    """
    groups = scale.shape[-1]
    numbers: Tensor = unpack(qweight, bits, groups * group).unflatten(-1, (groups, group)).to(torch.float32)
    if zero_point is None:
        zero = torch.tensor(float(1 << (bits - 1)))
    else:
        zero = unpack(zero_point, bits, groups).to(torch.float32).unsqueeze(-1)
    values: Tensor = ((numbers - zero) * scale.unsqueeze(-1)).flatten(-2)
    return values[..., :width]


def round_activations(x: Tensor, group: int) -> Tensor:
    """x rounded to int8 with one scale per row and group, amax / 127, and back: what integer arithmetic sees of it."""
    width = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -width % group)).unflatten(-1, (-1, group))
    scale = padded.abs().amax(dim=-1, keepdim=True) / 127
    rounded: Tensor = (torch.where(scale > 0, (padded / scale).round(), padded) * scale).flatten(-2)
    return rounded[..., :width]


_DEQUANTISED_AT_ONCE = 1 << 23


@torch.library.custom_op("dsv3::linear_int", mutates_args=())
def linear_int(
    x: Tensor, qweight: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group: int, activations: str
) -> Tensor:
    """y = x @ dequantise(weight)^T, in float32.

    Args:
        x: [..., K] float32.
        qweight, scale, zero_point: See `dequantise`.
        bits: 8 or 4.
        group: Neighbours along K that share a scale.
        activations: "none", or "int8" to round x first.

    Returns:
        [..., N].
    """
    rounded = round_activations(x, group) if activations == "int8" else x
    # To dequantise takes several times the float weights: a wide head is multiplied some rows at a time.
    step = max(1, _DEQUANTISED_AT_ONCE // x.shape[-1])
    parts = [
        rounded @ dequantise(qweight[rows], scale[rows], None if zero_point is None else zero_point[rows], bits, group,
                             x.shape[-1]).T
        for rows in (slice(begin, begin + step) for begin in range(0, len(qweight), step))
    ]  # fmt: skip
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@linear_int.register_fake
def _(
    x: Tensor, qweight: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, group: int, activations: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], qweight.shape[0]))


def dequantise_text(dims: Dims, attributes: Attributes, names: tuple[str, str, str | None], result: str) -> str:
    """ONNX text: `result` = the float value of packed weights.

    Args:
        dims: Has K, G and N; E too for a bank.
        names: Of the packed weights, scales and zero points in the text.
    """
    qweight, scale, zero_point = names
    bits, group, groups, width = attributes["bits"], attributes["group"], dims["G"], dims["K"]
    lead = [dims["E"], dims["N"]] if "E" in dims else [dims["N"]]
    text = _numbers_text(qweight, bits, f"{result}_numbers", [*lead, groups, group])
    if zero_point is None:
        text += f"""
    {result}_zero_column = Constant <value_float = {float(1 << (bits - 1))}> ()"""
    else:
        padded = groups + groups % 2 if bits == 4 else groups
        text += _numbers_text(zero_point, bits, f"{result}_all_zeros", [*lead, padded])
        text += f"""
    {result}_zero_start = Constant <value_ints = [0]> ()
    {result}_zero_end = Constant <value_ints = [{groups}]> ()
    {result}_zero_axis = Constant <value_ints = [-1]> ()
    {result}_some_zeros = Slice ({result}_all_zeros, {result}_zero_start, {result}_zero_end, {result}_zero_axis)
    {result}_zero_column = Unsqueeze ({result}_some_zeros, {result}_zero_axis)"""
    return f"""{text}
    {result}_centred = Sub ({result}_numbers, {result}_zero_column)
    {result}_last = Constant <value_ints = [-1]> ()
    {result}_scale_column = Unsqueeze ({scale}, {result}_last)
    {result}_groups = Mul ({result}_centred, {result}_scale_column)
    {result}_flat_shape = Constant <value_ints = [{", ".join(map(str, lead))}, -1]> ()
    {result}_filled = Reshape ({result}_groups, {result}_flat_shape)
    {result}_from = Constant <value_ints = [0]> ()
    {result}_to = Constant <value_ints = [{width}]> ()
    {result} = Slice ({result}_filled, {result}_from, {result}_to, {result}_last)"""


def _numbers_text(packed: str, bits: int, result: str, shape: list[int]) -> str:
    sizes = ", ".join(map(str, shape))
    if bits == 8:
        numbers = f"""
    {result}_bytes = Identity ({packed})"""
    else:
        numbers = f"""
    {result}_sixteen = Constant <value = uint8 {{16}}> ()
    {result}_low = Mod ({packed}, {result}_sixteen)
    {result}_high = Div ({packed}, {result}_sixteen)
    {result}_pair = Constant <value_ints = [-1]> ()
    {result}_low_column = Unsqueeze ({result}_low, {result}_pair)
    {result}_high_column = Unsqueeze ({result}_high, {result}_pair)
    {result}_bytes = Concat <axis = -1> ({result}_low_column, {result}_high_column)"""
    return f"""{numbers}
    {result}_float = Cast <to = 1> ({result}_bytes)
    {result}_shape = Constant <value_ints = [{sizes}]> ()
    {result} = Reshape ({result}_float, {result}_shape)"""


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: dequantise, then multiply."""
    zero = "zero_point" if "Z" in dims else None
    inputs = "x, qweight, scale" + (", zero_point" if zero else "")
    return f"""
LinearInt ({inputs}) => (y) {{
{dequantise_text(dims, attributes, ("qweight", "scale", zero), "weight")}
    weight_t = Transpose <perm = [1, 0]> (weight)
    y = MatMul (x, weight_t)
}}
"""


LINEAR_INT = Op(
    name="LinearInt",
    torch_name="dsv3::linear_int",
    doc="y[..., N] = x[..., K] @ ((qweight - zero_point) * scale)[N, K]^T, 8 or 4 bits, groups along K.",
    inputs=(
        Port("x", ("float",), ("...", "K")),
        Port("qweight", ("uint8",), ("N", "P")),
        Port("scale", ("float",), ("N", "G")),
        Port("zero_point", ("uint8",), ("N", "Z"), optional=True),
    ),
    outputs=(Port("y", ("float",), ("...", "N")),),
    attributes=(
        Attribute("bits", "int", "8 or 4"),
        Attribute("group", "int", "neighbours along K that share a scale"),
        Attribute("activations", "string", "none, or int8: inputs are rounded to int8 in the same groups"),
    ),
    kernel=linear_int,
    function=function,
    derived_dims=(("P/G", lambda dims: dims["P"] // dims["G"]),),
)
