"""All plugins, their checks, and how DeepSeek-V3 uses them: what is compiled to be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsv3export.plugins.kernels.checks import Check
from dsv3export.plugins.kernels.plugin import Attributes, Build, Plugin, TensorType
from dsv3export.plugins.linear_fp8_block import checks as linear_fp8_block_checks
from dsv3export.plugins.linear_fp8_block import tensorrt as linear_fp8_block

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin
    for plugin in (
        linear_fp8_block.QUANTISE_ACTIVATIONS,
        linear_fp8_block.FP8_BLOCK_GEMM,
        linear_fp8_block.FP8_WEIGHT_GEMM,
    )
}
"""The plugins by name."""

CHECKS: tuple[Check, ...] = (*linear_fp8_block_checks.CHECKS,)
"""The checks of all plugins."""

_TOKENS, _HIDDEN, _WIDTH = 64, 7168, 2048


@dataclass(frozen=True)
class Use:
    """A plugin at the types that DeepSeek-V3 gives it."""

    plugin: str
    inputs: tuple[TensorType, ...]
    attributes: Attributes


def _fp8(*shape: int) -> tuple[TensorType, TensorType]:
    *lead, rows, inner = shape
    scale = (*lead, -(-rows // 128), -(-inner // 128))
    return TensorType("F8_E4M3", shape), TensorType("F32", scale)


_X = TensorType("BF16", (_TOKENS, _HIDDEN))

USES = (
    Use("QuantiseActivations", (_X,), {}),
    Use(
        "Fp8BlockGemm",
        (*_fp8(_TOKENS, _HIDDEN)[:1], TensorType("F32", (_TOKENS, 56)), *_fp8(2112, _HIDDEN)),
        {"dtype": "BF16"},
    ),
    Use("Fp8WeightGemm", (_X, *_fp8(2112, _HIDDEN)), {}),
)
"""One use of each plugin and format."""


def builds(use: Use, target: int) -> Iterator[Build]:
    """The kernels of a use, one for each tile; none where the device lacks the instructions."""
    plugin = PLUGINS[use.plugin]
    if target < plugin.least:
        return
    outputs = plugin.outputs(use.inputs, use.attributes)
    for tile in plugin.tiles:
        yield plugin.launch(use.inputs, outputs, use.attributes, tile, target).build
