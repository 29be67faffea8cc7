"""All plugins, their checks, and how DeepSeek-V3 uses them: what is compiled to be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dsv3export.plugins.kernels.checks import Check
from dsv3export.plugins.kernels.plugin import Attribute, Attributes, Build, Launch, Plugin, TensorType
from dsv3export.plugins.kernels.sizes import parts_for
from dsv3export.plugins.latent_append import checks as latent_append_checks
from dsv3export.plugins.latent_append.tensorrt import PLUGINS as LATENT_APPENDERS
from dsv3export.plugins.linear_fp8_block import checks as linear_fp8_block_checks
from dsv3export.plugins.linear_fp8_block.tensorrt import (
    FP8_BLOCK_GEMM,
    FP8_WEIGHT_GEMM,
    NORM_QUANTISE,
    QUANTISE_ACTIVATIONS,
    SWIGLU_QUANTISE,
)
from dsv3export.plugins.linear_int import checks as linear_int_checks
from dsv3export.plugins.linear_int.tensorrt import LINEAR_INT, LINEAR_INT_ZERO, SUM_PARTS
from dsv3export.plugins.mla_attention import checks as mla_attention_checks
from dsv3export.plugins.mla_attention.prefill import MLA_PREFILL
from dsv3export.plugins.mla_attention.tensorrt import MLA_COMBINE, MLA_SPLIT, MLA_SPLIT_FP8
from dsv3export.plugins.moe_experts import checks as moe_experts_checks
from dsv3export.plugins.moe_experts import tensorrt as moe_experts
from dsv3export.plugins.moe_experts.tensorrt import FEW, MANY
from dsv3export.plugins.moe_route import checks as moe_route_checks
from dsv3export.plugins.moe_route.tensorrt import MOE_ROUTE

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin
    for plugin in (
        QUANTISE_ACTIVATIONS,
        NORM_QUANTISE,
        SWIGLU_QUANTISE,
        FP8_BLOCK_GEMM,
        FP8_WEIGHT_GEMM,
        LINEAR_INT,
        LINEAR_INT_ZERO,
        SUM_PARTS,
        *LATENT_APPENDERS,
        MLA_SPLIT,
        MLA_SPLIT_FP8,
        MLA_COMBINE,
        MLA_PREFILL,
        MOE_ROUTE,
        *moe_experts.PLUGINS,
    )
}
"""The plugins by name."""

CHECKS: tuple[Check, ...] = (
    *linear_fp8_block_checks.CHECKS,
    *linear_int_checks.CHECKS,
    *latent_append_checks.CHECKS,
    *mla_attention_checks.CHECKS,
    *moe_route_checks.CHECKS,
    *moe_experts_checks.CHECKS,
)
"""The checks of all plugins."""


@dataclass(frozen=True)
class Use:
    """A plugin at the types that DeepSeek-V3 gives it."""

    plugin: str
    inputs: Sequence[TensorType]
    attributes: Attributes = field(default_factory=dict)


# DeepSeek-V3's sizes (its technical report, section 4.2), and a batch of decoding.
_TOKENS, _HIDDEN, _WIDTH, _EXPERTS, _CHOICES = 64, 7168, 2048, 256, 8
_HEADS, _LATENT, _ROPE, _NOPE, _VALUE, _CAPACITY = 128, 512, 64, 128, 128, 4096
_GROUP = 128
_SHARES = parts_for(_TOKENS, 2112, _HIDDEN, 132)  # of K, on an H100
_SLOTS = TensorType("I32", (4096,)), TensorType("I32", (256,))


def _x(width: int, dtype: str = "BF16") -> TensorType:
    return TensorType(dtype, (_TOKENS, width))


def _each(width: int, dtype: str = "BF16") -> TensorType:
    return TensorType(dtype, (_TOKENS * _CHOICES, width))


def _scales(x: TensorType) -> TensorType:
    return TensorType("F32", (x.shape[0], -(-int(str(x.shape[1])) // 128)))


def _fp8(*shape: int) -> tuple[TensorType, ...]:
    *lead, rows, inner = shape
    return TensorType("F8_E4M3", shape), TensorType("F32", (*lead, -(-rows // 128), -(-inner // 128)))


def _int(bits: int, *shape: int, zero: bool = False) -> tuple[TensorType, ...]:
    *lead, inner = shape
    groups = inner // _GROUP
    types = TensorType("U8", (*lead, inner * bits // 8)), TensorType("F32", (*lead, groups))
    return (*types, TensorType("U8", (*lead, -(-groups * bits // 8)))) if zero else types


def _integers(bits: int, activations: str = "none") -> dict[str, int | str]:
    return {"bits": bits, "group": _GROUP, "activations": activations}


def _linear_uses() -> Iterator[Use]:
    columns = 2112  # q_a_proj and kv_a_proj in one
    yield Use("QuantiseActivations", (_x(_HIDDEN),))
    yield Use("NormQuantise", (_x(_HIDDEN), TensorType("BF16", (_HIDDEN,))), {"eps": 1e-6})
    yield Use("SwigluQuantise", (_x(_WIDTH), _x(_WIDTH)))
    eighth = _x(_HIDDEN, "F8_E4M3")
    yield Use("Fp8BlockGemm", (eighth, _scales(eighth), *_fp8(columns, _HIDDEN)), {"dtype": "BF16", "parts": _SHARES})
    yield Use("Fp8WeightGemm", (_x(_HIDDEN), *_fp8(columns, _HIDDEN)), {"parts": _SHARES})
    for bits, activations in ((8, "none"), (8, "int8"), (4, "none")):
        said = {**_integers(bits, activations), "parts": _SHARES}
        yield Use("LinearInt", (_x(_HIDDEN), *_int(bits, columns, _HIDDEN)), said)
        yield Use("LinearIntZero", (_x(_HIDDEN), *_int(bits, columns, _HIDDEN, zero=True)), said)
    yield Use("SumParts", (TensorType("F32", (_SHARES, _TOKENS, columns)),), {"dtype": "BF16"})


def _attention_uses() -> Iterator[Use]:
    cache = TensorType("BF16", (_TOKENS, 1, _CAPACITY, _LATENT + _ROPE))
    start = TensorType("I64", (_TOKENS,))
    eighth = TensorType("F8_E4M3", (_TOKENS, 1, _CAPACITY, _LATENT))
    side = TensorType("BF16", (_TOKENS, 1, _CAPACITY, _ROPE + _LATENT // 128))
    new = [TensorType("BF16", (_TOKENS, 1, width)) for width in (_LATENT, _ROPE)]
    yield Use("LatentAppend", (cache, *new, start))
    yield Use("LatentAppendFp8", (eighth, side, *new, start))
    projected = (
        TensorType("BF16", (_TOKENS, 1, _LATENT + _ROPE)),
        TensorType("BF16", (_LATENT,)),
        *(TensorType("F32", (_TOKENS, 1, _ROPE // 2)) for _ in range(2)),
    )
    yield Use("LatentAppendNormed", (cache, *projected, start), {"eps": 1e-6})
    yield Use("LatentAppendNormedFp8", (eighth, side, *projected, start), {"eps": 1e-6})
    for heads in (16, _HEADS):
        q, q_pe = (TensorType("BF16", (_TOKENS, 1, heads, width)) for width in (_LATENT, _ROPE))
        said: dict[str, Attribute] = {"scale": 0.1352, "parts": 4 if heads < _HEADS else 1, "dtype": "BF16"}
        yield Use("MlaSplit", (q, q_pe, cache, start), said)
        yield Use("MlaSplitFp8", (q, q_pe, eighth, side, start), said)
    q, q_pe = (TensorType("BF16", (1, _CAPACITY, _HEADS, width)) for width in (_NOPE, _ROPE))
    kv = TensorType("BF16", (1, _CAPACITY, _HEADS, _NOPE + _VALUE))
    held = TensorType("BF16", (1, 1, _CAPACITY, _LATENT + _ROPE))
    yield Use("MlaPrefill", (q, q_pe, kv, held, TensorType("I64", (1,))), {"scale": 0.1352, "value": _VALUE})
    lead = (_TOKENS, 1, 16, 4)
    yield Use("MlaCombine", (TensorType("F32", (*lead, _LATENT)), TensorType("F32", lead)), {"dtype": "BF16"})


def _expert_uses() -> Iterator[Use]:
    routing: dict[str, Attribute] = {"k": _CHOICES, "n_group": 8, "topk_group": 4, "group_top": 2}
    more: dict[str, Attribute] = {"scoring": "sigmoid", "normalize": 1, "scaling": 2.5}
    yield Use("MoERoute", (_x(_EXPERTS, "F32"), TensorType("F32", (_EXPERTS,))), {**routing, **more})
    yield Use("MoEOrder", (TensorType("I32", (_TOKENS, _CHOICES)),), {"experts": _EXPERTS, "block": FEW})
    up, down = (_EXPERTS, _WIDTH, _HIDDEN), (_EXPERTS, _HIDDEN, _WIDTH)
    for block in (FEW, MANY):
        blocks = {"block": block}
        first = {"k": _CHOICES, **blocks}
        plain = [TensorType("BF16", shape) for shape in (up, up, down)]
        yield Use("MoEGateUp", (_x(_HIDDEN), *_SLOTS, *plain[:2]), first)
        yield Use("MoEDown", (_each(_WIDTH), *_SLOTS, plain[2]), blocks)
        yield Use("MoEGateUpFp8", (_x(_HIDDEN), *_SLOTS, *_fp8(*up), *_fp8(*up)), first)
        yield Use("MoEDownFp8", (_each(_WIDTH), *_SLOTS, *_fp8(*down)), blocks)
        eighth, hidden = _x(_HIDDEN, "F8_E4M3"), _each(_WIDTH, "F8_E4M3")
        dtype = {"dtype": "BF16"}
        yield Use("MoEGateUpFp8Rounded", (eighth, _scales(eighth), *_SLOTS, *_fp8(*up), *_fp8(*up)), {**first, **dtype})
        yield Use("MoEDownFp8Rounded", (hidden, _scales(hidden), *_SLOTS, *_fp8(*down)), {**blocks, **dtype})
        for bits in (8, 4):
            for name, zero in (("Int", False), ("IntZero", True)):
                banks = [_int(bits, *shape, zero=zero) for shape in (up, up, down)]
                yield Use(
                    f"MoEGateUp{name}", (_x(_HIDDEN), *_SLOTS, *banks[0], *banks[1]), {**first, **_integers(bits)}
                )
                yield Use(f"MoEDown{name}", (_each(_WIDTH), *_SLOTS, *banks[2]), {**blocks, **_integers(bits)})
    yield Use("MoECombine", (_each(_HIDDEN), TensorType("F32", (_TOKENS, _CHOICES))))


USES = (*_linear_uses(), *_attention_uses(), *_expert_uses())
"""Each plugin in each format."""


def builds(use: Use, target: int) -> Iterator[Build]:
    """The kernels of a use, one for each tile; none where the device lacks the instructions."""
    return (launch.build for launch in launches(use, target))


def launches(use: Use, target: int) -> Iterator[Launch]:
    """The launches of a use, one for each tile; none where the device lacks the instructions."""
    plugin = PLUGINS[use.plugin]
    if target < plugin.least:
        return
    outputs = plugin.outputs(use.inputs, use.attributes)
    for tile in plugin.tiles:
        yield plugin.launch(use.inputs, outputs, use.attributes, tile, target)
