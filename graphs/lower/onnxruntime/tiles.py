"""ONNX text of products with weights that stay in 16 bits in memory and are widened to float32 in each step.

ONNX Runtime has no products of such weights on a CPU. A weight that is widened as a whole leaves the core's cache
before it is multiplied, and takes twice the time of a float32 weight; so it is widened a tile of rows at a time.
"""

from __future__ import annotations

# Numbers of a tile, for a few rows of activations and for many. ONNX Runtime widens on one thread, and splits a product
# of one row and 2^16 numbers or more between threads, where half of it then is in the wrong core's cache. Products of
# many rows gain from threads, but not if they are woken for every tile.
FEW, MANY = (1 << 16) - 1, 1 << 22
# From here on there are many rows.
MANY_ROWS = 8


def tile_rows(rows: int, width: int, largest: int) -> int:
    """Rows of a tile of a weight [rows, width]: the largest divisor of `rows` with at most `largest` numbers, or 1."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and n * width <= max(largest, width))


def tiles_text(weights: tuple[str, ...], x: str, rows: int, width: int) -> str:
    """ONNX text: of each weight w [rows, width] the view `w_tiles` [tiles, tile rows, width].

    Args:
        x: The activations that it will be multiplied with, [M, width]. Their number also keeps ONNX Runtime from
            folding the view of a weight into a copy, for which it looks in the file even if the weight is bound.
    """
    first = weights[0]
    few, many = (tile_rows(rows, width, largest) for largest in (FEW, MANY))
    views = "".join(f"""
    {weight}_tiles = Reshape ({weight}, {first}_tiles_shape)""" for weight in weights)  # fmt: skip
    return f"""
    {first}_few = Constant <value_ints = [{rows // few}, {few}, {width}]> ()
    {first}_many = Constant <value_ints = [{rows // many}, {many}, {width}]> ()
    {first}_row_count = Shape <start = 0, end = 1> ({x})
    {first}_many_rows = Constant <value_int = {MANY_ROWS}> ()
    {first}_is_few = Less ({first}_row_count, {first}_many_rows)
    {first}_tiles_shape = Where ({first}_is_few, {first}_few, {first}_many){views}"""


def product_text(x: str, weight: str, result: str, rows: int) -> str:
    """ONNX text: `result` [M, rows] = `x` [M, width] times the transposed weight whose tiles there are."""
    return f"""
    {result}_parts = Scan <num_scan_inputs = 1, body = {result}_each ({weight}_tile) => ({result}_part) {{
        {weight}_wide = Cast <to = 1> ({weight}_tile)
        {result}_part = com.microsoft.FusedMatMul <transB = 1> ({x}, {weight}_wide)
    }}> ({weight}_tiles)
{joined_text(f"{result}_parts", result, x, rows)}"""


def joined_text(parts: str, result: str, x: str, rows: int) -> str:
    """ONNX text: `result` [M, rows] from `parts` [tiles, M, tile rows], for the M rows of `x`.

    There are none where no logits are wanted: scan_output_axes, which would save the transpose, then divides by zero.
    """
    return f"""
    {parts}_by_row = Transpose <perm = [1, 0, 2]> ({parts})
    {result}_width = Constant <value_ints = [{rows}]> ()
    {result}_height = Shape <start = 0, end = 1> ({x})
    {result}_shape = Concat <axis = 0> ({result}_height, {result}_width)
    {result} = Reshape <allowzero = 1> ({parts}_by_row, {result}_shape)"""
