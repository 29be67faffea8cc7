"""How networks use each plugin: some sizes have names, as in a network with dynamic shapes, and there are some runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from dsv3export.plugins.kernels.plugin import Attribute, TensorType

Shape = tuple["int | str", ...]


@dataclass(frozen=True)
class PluginUse:
    """A plugin in a network.

    Args:
        inputs: safetensors dtype and shape.
        runs: What the named sizes are, run by run; the first is what TensorRT times.
    """

    plugin: str
    inputs: Sequence[tuple[str, Shape]]
    runs: Sequence[Mapping[str, int]]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def types(self, sizes: Mapping[str, int]) -> list[TensorType]:
        """The inputs' types in a run."""
        return [
            TensorType(dtype, tuple(sizes[size] if isinstance(size, str) else size for size in shape))
            for dtype, shape in self.inputs
        ]

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.plugin}-{self.inputs[0][0]}-{'x'.join(str(size) for size in self.inputs[0][1])}"


def fp8(*shape: int) -> list[tuple[str, Shape]]:
    *lead, rows, inner = shape
    return [("F8_E4M3", shape), ("F32", (*lead, -(-rows // 128), -(-inner // 128)))]


def packed(bits: int, zero: bool, *shape: int) -> list[tuple[str, Shape]]:
    """Of groups of 32; the bytes under TensorRT's type for them."""
    *lead, inner = shape
    groups = -(-inner // 32)
    zeros: list[tuple[str, Shape]] = [("I8", (*lead, -(-groups * bits // 8)))]
    return [("I8", (*lead, groups * 32 * bits // 8)), ("F32", (*lead, groups)), *(zeros if zero else [])]


def integers(bits: int, activations: str = "none") -> dict[str, Attribute]:
    return {"bits": bits, "group": 32, "activations": activations}


def _linear(bits: int, activations: str = "none", parts: int = 1) -> dict[str, Attribute]:
    return {**integers(bits, activations), "parts": parts}


_BATCHES = ({"B": 2, "S": 3}, {"B": 1, "S": 1}, {"B": 8, "S": 129})

_TOKENS = (
    {"T": 5, "slots": 15, "rows": 240, "blocks": 15},
    {"T": 1, "slots": 3, "rows": 48, "blocks": 3},
    {"T": 129, "slots": 387, "rows": 640, "blocks": 40},
)
_ORDER: list[tuple[str, Shape]] = [("I32", ("rows",)), ("I32", ("blocks",))]


def _expert_uses(
    suffix: str, bank: Callable[..., list[tuple[str, Shape]]], attributes: Mapping[str, Attribute]
) -> tuple[PluginUse, PluginUse]:
    """16 experts of 96 -> 64 -> 96, three a token."""
    up, down = bank(16, 64, 96), bank(16, 96, 64)
    first = [("BF16", ("T", 96)), *_ORDER, *up, *up]
    second = [("BF16", ("slots", 64)), *_ORDER, *down]
    return (
        PluginUse(f"MoEGateUp{suffix}", first, _TOKENS, {"k": 3, "block": 16, **attributes}),
        PluginUse(f"MoEDown{suffix}", second, _TOKENS, {"block": 16, **attributes}),
    )


_FP8_CACHE: list[tuple[str, Shape]] = [("F8_E4M3", ("B", 1, 300, 32)), ("BF16", ("B", 1, 300, 18))]
_START: tuple[str, Shape] = ("I64", ("B",))


def _projected(latent: int, rope: int) -> list[tuple[str, Shape]]:
    angles: tuple[str, Shape] = ("F32", ("B", "S", rope // 2))
    return [("BF16", ("B", "S", latent + rope)), ("BF16", (latent,)), angles, angles]


USES = (
    PluginUse("QuantiseActivations", [("BF16", ("B", "S", 300))], _BATCHES),
    PluginUse("QuantiseActivations", [("F16", ("B", 128))], _BATCHES),
    PluginUse("NormQuantise", [("BF16", ("B", "S", 300)), ("BF16", (300,))], _BATCHES, {"eps": 1e-6}),
    PluginUse("SwigluQuantise", [("BF16", ("B", "S", 300)), ("BF16", ("B", "S", 300))], _BATCHES),
    PluginUse(
        "Fp8BlockGemm",
        [("F8_E4M3", ("B", "S", 300)), ("F32", ("B", "S", 3)), ("F8_E4M3", (130, 300)), ("F32", (2, 3))],
        _BATCHES,
        {"dtype": "BF16", "parts": 1},
    ),
    PluginUse("Fp8WeightGemm", [("F16", ("B", "S", 256)), *fp8(160, 256)], _BATCHES, {"parts": 1}),
    PluginUse("Fp8WeightGemm", [("F32", ("B", 256)), *fp8(160, 256)], _BATCHES, {"parts": 2}),
    PluginUse("LinearInt", [("BF16", ("B", "S", 96)), *packed(8, False, 70, 96)], _BATCHES, _linear(8)),
    PluginUse("LinearInt", [("F32", ("B", 96)), *packed(8, False, 70, 96)], _BATCHES, _linear(8, "int8", 3)),
    PluginUse("LinearIntZero", [("BF16", ("B", "S", 96)), *packed(4, True, 70, 96)], _BATCHES, _linear(4)),
    PluginUse("SumParts", [("F32", (3, "B", "S", 70))], _BATCHES, {"dtype": "BF16"}),
    PluginUse(
        "LatentAppend",
        [("BF16", ("B", 1, 300, 40)), ("BF16", ("B", "S", 24)), ("BF16", ("B", "S", 16)), ("I64", ("B",))],
        _BATCHES,
    ),
    PluginUse("LatentAppendFp8", [*_FP8_CACHE, ("BF16", ("B", "S", 32)), ("BF16", ("B", "S", 16)), _START], _BATCHES),
    PluginUse(
        "LatentAppendNormed", [("BF16", ("B", 1, 300, 40)), *_projected(24, 16), _START], _BATCHES, {"eps": 1e-6}
    ),
    PluginUse("LatentAppendNormedFp8", [*_FP8_CACHE, *_projected(32, 16), _START], _BATCHES, {"eps": 1e-6}),
    PluginUse(
        "MlaSplit",
        [("BF16", ("B", "S", 4, 24)), ("BF16", ("B", "S", 4, 16)), ("BF16", ("B", 1, 300, 40)), ("I64", ("B",))],
        _BATCHES,
        {"scale": 0.1, "parts": 4, "dtype": "BF16"},
    ),
    PluginUse(
        "MlaSplitFp8",
        [
            *(("BF16", ("B", "S", 4, width)) for width in (32, 16)),
            ("F8_E4M3", ("B", 1, 300, 32)),
            ("BF16", ("B", 1, 300, 18)),
            ("I64", ("B",)),
        ],
        _BATCHES,
        {"scale": 0.1, "parts": 1, "dtype": "BF16"},
    ),
    PluginUse(
        "MlaPrefill",
        [
            *(("BF16", ("B", "S", 4, width)) for width in (24, 16)),
            ("BF16", ("B", "S", 4, 44)),
            ("BF16", ("B", 1, 300, 40)),
            ("I64", ("B",)),
        ],
        _BATCHES,
        {"scale": 0.1, "value": 20},
    ),
    PluginUse("MlaCombine", [("F32", ("B", "S", 4, 4, 24)), ("F32", ("B", "S", 4, 4))], _BATCHES, {"dtype": "F16"}),
    PluginUse(
        "MoERoute",
        [("F32", ("T", 16)), ("F32", (16,))],
        _TOKENS,
        {"k": 3, "n_group": 4, "topk_group": 2, "group_top": 2, "scoring": "sigmoid", "normalize": 1, "scaling": 2.5},
    ),
    PluginUse("MoEOrder", [("I32", ("T", 3))], _TOKENS, {"experts": 16, "block": 16}),
    PluginUse("MoEOrder", [("I64", ("T", 3))], _TOKENS, {"experts": 16, "block": 64}),
    *_expert_uses("", lambda *shape: [("BF16", shape)], {}),
    *_expert_uses("Fp8", fp8, {}),
    *_expert_uses("Int", lambda *shape: packed(8, False, *shape), integers(8)),
    *_expert_uses("IntZero", lambda *shape: packed(4, True, *shape), integers(4)),
    PluginUse(
        "MoEGateUpFp8Rounded",
        [("F8_E4M3", ("T", 96)), ("F32", ("T", 1)), *_ORDER, *fp8(16, 64, 96), *fp8(16, 64, 96)],
        _TOKENS,
        {"k": 3, "block": 16, "dtype": "BF16"},
    ),
    PluginUse(
        "MoEDownFp8Rounded",
        [("F8_E4M3", ("slots", 64)), ("F32", ("slots", 1)), *_ORDER, *fp8(16, 96, 64)],
        _TOKENS,
        {"block": 16, "dtype": "BF16"},
    ),
    PluginUse("MoECombine", [("BF16", ("slots", 96)), ("F32", ("T", 3))], _TOKENS),
)
