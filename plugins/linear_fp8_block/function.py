"""ONNX text that the functions of the FP8 ops share, in standard ops."""

from __future__ import annotations

from dsv3export.plugins.linear_fp8_block.matmul import BLOCK, LARGEST
from dsv3export.plugins.registry import Attributes


def spread_text(scale: str, result: str, rows: int) -> str:
    """`result` = scales [n, g], each row repeated for the rows of its block: [rows, g]."""
    return f"""
    {result}_one = Constant <value_ints = [1]> ()
    {result}_zero = Constant <value_ints = [0]> ()
    {result}_columns = Unsqueeze ({scale}, {result}_one)
    {result}_times = Constant <value_ints = [1, {BLOCK}, 1]> ()
    {result}_each = Expand ({result}_columns, {result}_times)
    {result}_groups = Shape <start = 1> ({scale})
    {result}_minus = Constant <value_ints = [-1]> ()
    {result}_shape = Concat <axis = 0> ({result}_minus, {result}_groups)
    {result}_all = Reshape ({result}_each, {result}_shape)
    {result}_rows = Constant <value_ints = [{rows}]> ()
    {result} = Slice ({result}_all, {result}_zero, {result}_rows, {result}_zero)"""


def dequantise_text(weight: str, scale: str, result: str, rows: int) -> str:
    """`result` = the float value of an FP8 weight [rows, K]; ONNX's blocks are of one row."""
    return f"""{spread_text(scale, f"{result}_scale", rows)}
    {result} = DequantizeLinear <axis = 1, block_size = {BLOCK}> ({weight}, {result}_scale)"""


def rounded_text(x: str, result: str, width: int, attributes: Attributes) -> str:
    """`result` = `x` [..., width] as the product sees it: itself, or rounded to e4m3 in groups of 128."""
    if attributes["activations"] == "none":
        return f"""
    {result} = Identity ({x})"""
    groups = -(-width // BLOCK)
    filled = groups * BLOCK - width
    return f"""
    {result}_last = Constant <value_ints = [-1]> ()
    {result}_pads = Constant <value_ints = [0, {filled}]> ()
    {result}_padded = Pad ({x}, {result}_pads, , {result}_last)
    {result}_lead = Shape <start = 0, end = -1> ({x})
    {result}_split = Constant <value_ints = [{groups}, {BLOCK}]> ()
    {result}_split_shape = Concat <axis = 0> ({result}_lead, {result}_split)
    {result}_groups = Reshape ({result}_padded, {result}_split_shape)
    {result}_sizes = Abs ({result}_groups)
    {result}_amax = ReduceMax <keepdims = 1> ({result}_sizes, {result}_last)
    {result}_largest = Constant <value_float = {LARGEST}> ()
    {result}_quotient = Div ({result}_amax, {result}_largest)
    {result}_tiny = Constant <value_float = 1.17549435e-38> ()
    {result}_is_tiny = Less ({result}_quotient, {result}_tiny)
    {result}_unit = Constant <value_float = 1.0> ()
    {result}_scale = Where ({result}_is_tiny, {result}_unit, {result}_quotient)
    {result}_scaled = Div ({result}_groups, {result}_scale)
    {result}_fp8 = Cast <to = 17> ({result}_scaled)
    {result}_float = Cast <to = 1> ({result}_fp8)
    {result}_back = Mul ({result}_float, {result}_scale)
    {result}_flat = Constant <value_ints = [{groups * BLOCK}]> ()
    {result}_flat_shape = Concat <axis = 0> ({result}_lead, {result}_flat)
    {result}_filled = Reshape ({result}_back, {result}_flat_shape)
    {result}_zero = Constant <value_ints = [0]> ()
    {result}_end = Constant <value_ints = [{width}]> ()
    {result} = Slice ({result}_filled, {result}_zero, {result}_end, {result}_last)"""
