"""The quantise pass: weights, and the ops that use them, get the precision that the recipe gives their component.

Given -> Result, for int8 in groups of 128::

    y = dsv3::Linear(x, q_a_proj.weight: f32[N, K])
    y = dsv3::LinearInt(x, q_a_proj.weight.q: u8[N, K], q_a_proj.weight.scale: f32[N, K/128]) {bits=8, group=128}

    e = dsv3::MoEExperts(x, ids, weights, gate, up, down)
    e = dsv3::MoEExpertsInt(x, ids, weights, gate.q, gate.scale, up.q, up.scale, down.q, down.scale) {bits=8, group=128}

    a = dsv3::MlaAttention(q_nope, q_pe, cache, kv_b, start)
    a = dsv3::MlaAttentionInt(q_nope, q_pe, cache, w_uk: i8, w_uk.scale, w_uv: i8, w_uv.scale, start)

For fp8 the parts have the checkpoint's names, and its bytes where it is FP8 itself::

    y = dsv3::LinearFp8Block(x, q_a_proj.weight: f8[N, K], q_a_proj.weight_scale_inv) {activations="none"}
    e = dsv3::MoEExpertsFp8Block(x, ids, weights, gate, gate_scale, up, up_scale, down, down_scale) {..}
    a = dsv3::MlaAttentionFp8Block(q_nope, q_pe, cache, kv_b, kv_b_scale, start) {.., activations="none"}

For bf16 and f16 the ops stay, and their weights have that type::

    y = dsv3::Linear(x, q_a_proj.weight: bf16[N, K])
    e = dsv3::MoEExperts(x, ids, weights, gate: bf16[E, I, D], up: bf16[E, I, D], down: bf16[E, D, I])
    a = dsv3::MlaAttention(q_nope, q_pe, cache, kv_b: bf16, start)

Layers of one kind with different schemes become kinds of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dsv3export.checkpoint.validate import SCALE
from dsv3export.config import ModelConfig
from dsv3export.errors import InternalError
from dsv3export.graphs.fp8_parts import FP8_NUMBERS, FP8_SCALES
from dsv3export.graphs.rewrite import GraphWithWeights, KindRewriter, RewrittenKind, rebuild
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.values import is_weight, own_copy
from dsv3export.plugins import DOMAIN, OPS
from dsv3export.plugins.dims import bind_dims, static_dims
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK
from dsv3export.recipe import COMPONENTS, Component, Recipe, RecipeError, Scheme

Schemes = tuple[Scheme | None, ...]
BITS = {"int8": 8, "int4": 4}
HALVES = {"bf16": ir.DataType.BFLOAT16, "f16": ir.DataType.FLOAT16}
# Scales of whole rows are stored once per so many columns: ONNX Runtime has no wider blocks, and is slow on them.
CHANNEL_GROUP = 128
# The FP8 forms take the same inputs, each weight followed by its scales.
FP8_OPS = {
    "Linear": "LinearFp8Block",
    "MoEExperts": "MoEExpertsFp8Block",
    "MlaAttention": "MlaAttentionFp8Block",
}


def quantise(before: GraphWithWeights, recipe: Recipe, config: ModelConfig) -> GraphWithWeights:
    """Apply a recipe to a traced graph; the given graph stays as it is."""
    names: dict[tuple[str, Schemes], str] = {}
    functions: list[ir.Function] = []
    kinds: dict[str, RewrittenKind] = {}
    kind_of: dict[str, str] = {}
    for node in before.model.graph:
        schemes = _schemes(node, recipe, config)
        variant = (node.op_type, schemes)
        if variant not in names:
            taken = sum(kind == node.op_type for kind, _ in names)
            names[variant] = node.op_type if not taken else f"{node.op_type}_{taken + 1}"
            function = own_copy(before.model.functions[(node.domain, node.op_type, "")])
            function.name = names[variant]
            functions.append(function)
            kinds[function.name] = _quantise_kind(function, dict(zip(COMPONENTS, schemes, strict=True)))
        kind_of[str(node.name)] = names[variant]
    return rebuild(before, kinds, functions, kind_of)


def _schemes(call: ir.Node, recipe: Recipe, config: ModelConfig) -> Schemes:
    """The schemes of a call's components, in the order of `COMPONENTS`; None for those that a layer cannot have."""
    layers = config.num_hidden_layers
    path = call.metadata_props["dsv3.path"]
    if path:
        layer = int(path.removeprefix("layers."))
        return tuple(recipe.scheme(component, layer, layers) for component in COMPONENTS)
    outer: tuple[Component, ...] = ("head", "embedding")
    return tuple(recipe.components[component] if component in outer else None for component in COMPONENTS)


def component_of(node: ir.Node) -> Component | None:
    """The component that a node's weights belong to; None for the router, which stays float32."""
    path = node.metadata_props["dsv3.module"]
    if path.startswith("self_attn"):
        return "attention"
    if path.startswith("mlp.shared_experts"):
        return "shared_experts"
    if path.startswith("mlp.experts"):
        return "routed_experts"
    if path.startswith("mlp.gate") and not path.startswith("mlp.gate_proj"):
        return None
    if path.startswith("mlp."):
        return "dense_mlp"
    return "head"


def _quantise_kind(function: ir.Function, schemes: Mapping[Component, Scheme | None]) -> RewrittenKind:
    rewriter = KindRewriter(function)
    for node in [node for node in function if node.domain == DOMAIN]:
        component = component_of(node)
        scheme = schemes[component] if component else None
        if scheme is None:
            continue
        if scheme.format in BITS and node.op_type in _INT_REWRITES:
            _INT_REWRITES[node.op_type](rewriter, node, scheme)
        elif scheme.format in HALVES:
            _half(rewriter, node, HALVES[scheme.format])
        elif scheme.format == "fp8" and node.op_type in FP8_OPS:
            _fp8(rewriter, node, scheme)
    return rewriter.finish()


def _half(rewriter: KindRewriter, node: ir.Node, dtype: ir.DataType) -> None:
    """The same op with each of its weights in another type."""
    for port, value in enumerate(map(_given, node.inputs)):
        if is_weight(value):
            node.replace_input_with(port, rewriter.store_as(value, dtype))


def _fp8(rewriter: KindRewriter, node: ir.Node, scheme: Scheme) -> None:
    """Each weight becomes its FP8 numbers and, right behind them, their scales."""
    inputs: list[ir.Value] = []
    for value in map(_given, node.inputs):
        inputs += _fp8_parts(rewriter, value) if is_weight(value) else [value]
    attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
    rewriter.replace(node, FP8_OPS[node.op_type], DOMAIN, inputs, {**attributes, "activations": scheme.activations})


def _fp8_parts(rewriter: KindRewriter, weight: ir.Value) -> list[ir.Value]:
    *lead, rows, width = _static_dims(weight)
    name, blocks = str(weight.name), [*lead, -(-rows // BLOCK), -(-width // BLOCK)]
    return [
        rewriter.part(weight, name, FP8_NUMBERS, ir.DataType.FLOAT8E4M3FN, [*lead, rows, width]),
        rewriter.part(weight, f"{name}{SCALE}", FP8_SCALES, ir.DataType.FLOAT, blocks),
    ]


def _linear(rewriter: KindRewriter, node: ir.Node, scheme: Scheme) -> None:
    x, weight = (_given(value) for value in node.inputs)
    rewriter.replace(node, "LinearInt", DOMAIN, [x, *_packed(rewriter, weight, scheme)], _attributes(scheme))


def _experts(rewriter: KindRewriter, node: ir.Node, scheme: Scheme) -> None:
    group = scheme.group_size or CHANNEL_GROUP
    widths = {_static_dims(bank)[-1] for bank in node.inputs if bank is not None and is_weight(bank)}
    if any(width % group for width in widths):
        raise RecipeError(
            "routed_experts group_size",
            expected=f"a divisor of the experts' input widths, {' and '.join(map(str, sorted(widths)))}",
            got=str(group),
            fix="Choose a smaller group_size in a recipe.",
        )
    banks = [_packed(rewriter, bank, scheme) for bank in node.inputs if bank is not None and is_weight(bank)]
    run_time = [value for value in node.inputs if value is not None and not is_weight(value)]
    weights = [value for bank in banks for value in bank[:2]] + [bank[2] for bank in banks if len(bank) > 2]
    rewriter.replace(node, "MoEExpertsInt", DOMAIN, [*run_time, *weights], _attributes(scheme))


def _attention(rewriter: KindRewriter, node: ir.Node, scheme: Scheme) -> None:
    """The up-projections as int8 also where the rest of the attention has 4 bits: they are 2 % of the weights read."""
    q_nope, q_pe, cache, kv_b, start = (_given(value) for value in node.inputs)
    op = OPS["MlaAttention"]
    dims = static_dims(op, bind_dims(op, [dims_of(_given(value)) for value in node.inputs]))
    heads, nope, latent, value = dims["H"], dims["Dn"], dims["Dc"], dims["Dv"]
    parts = []
    for part, shape in (("w_uk", [heads, nope, latent]), ("w_uv", [heads, latent, value])):
        name = f"{kv_b.name}.{part}"
        scale_shape = [heads, 1, shape[2]]
        parts.append(rewriter.weight(name, ir.DataType.INT8, shape, f"{part}_int8", [kv_b], dims))
        parts.append(rewriter.weight(f"{name}.scale", ir.DataType.FLOAT, scale_shape, f"{part}_scale", [kv_b], dims))
    attributes = {"scale": node.attributes["scale"].value}
    rewriter.replace(node, "MlaAttentionInt", DOMAIN, [q_nope, q_pe, cache, *parts, start], attributes)


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise InternalError("a dsv3 node lacks an input")
    return value


_INT_REWRITES = {"Linear": _linear, "MoEExperts": _experts, "MlaAttention": _attention}


def _attributes(scheme: Scheme) -> dict[str, int | str]:
    return {
        "bits": BITS[scheme.format],
        "group": scheme.group_size or CHANNEL_GROUP,
        "activations": scheme.activations,
    }


def _packed(rewriter: KindRewriter, weight: ir.Value, scheme: Scheme) -> list[ir.Value]:
    """The packed numbers, scales and (asymmetric) zero points of a weight [..., N, K]."""
    *lead, width = _static_dims(weight)
    bits, group = BITS[scheme.format], scheme.group_size or CHANNEL_GROUP
    groups = -(-width // group)
    params = {
        "bits": bits,
        "group": group,
        "per_channel": scheme.group_size is None,
        "symmetric": scheme.symmetric,
        "method": scheme.method,
    }
    parts = [("q", ir.DataType.UINT8, groups * group * bits // 8), ("scale", ir.DataType.FLOAT, groups)]
    if not scheme.symmetric:
        parts.append(("zero_point", ir.DataType.UINT8, -(-groups * bits // 8)))
    return [
        rewriter.weight(f"{weight.name}.{part}", dtype, [*lead, last], f"int_{part}", [weight], params)
        for part, dtype, last in parts
    ]


def _static_dims(value: ir.Value) -> Sequence[int]:
    return [int(dim) for dim in dims_of(value)]
