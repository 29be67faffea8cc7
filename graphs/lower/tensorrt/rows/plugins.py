"""The dsv3 ops by plugins, for the flavour that takes them; what they do not do is done by native layers.

Weights are taken as the ops have them. An attention's prefill is native, as is all of its arithmetic in float32, whose
rows of a true width do not fit into the shared memory that a plugin may count on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import onnx_ir as ir

from dsv3export.errors import BackendError
from dsv3export.graphs.lower.packed import node_dims
from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor, Module
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows.attention import absorbed_query, mla_attention, up_projections, values_of
from dsv3export.plugins.kernels.plugin import Attribute, Plugin
from dsv3export.plugins.kernels.quick_plugin import NAMESPACE, plugin_module, register
from dsv3export.plugins.kernels.sizes import power_of_two
from dsv3export.plugins.latent_append.tensorrt import LATENT_APPEND
from dsv3export.plugins.linear_fp8_block.tensorrt import linear_fp8_block
from dsv3export.plugins.linear_int.tensorrt import linear_int
from dsv3export.plugins.mla_attention.tensorrt import attend
from dsv3export.plugins.moe_experts.tensorrt import FEW, MANY, through_experts
from dsv3export.plugins.moe_route.tensorrt import MOE_ROUTE
from dsv3export.plugins.registry import DOMAIN
from dsv3export.runtime.device import Device

Inputs = Sequence[ITensor]

# Tokens of a slot that one program attends over at least, and how many programs share a slot at most.
_TOKENS_A_PART, _MOST_PARTS = 256, 16


class PluginCall:
    """Adds plugins to a network; implements `Call`."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter

    def __call__(self, plugin: Plugin, inputs: Sequence[ITensor], **attributes: Attribute) -> tuple[ITensor, ...]:
        layer = self._emitter.named(add_plugin(self._emitter, plugin, inputs, attributes), plugin.name)
        return tuple(layer.get_output(place) for place in range(len(plugin.results)))


def add_plugin(emitter: Emitter, plugin: Plugin, inputs: Inputs, attributes: Mapping[str, Attribute]) -> Any:
    """The layer of a plugin whose kernel is compiled now, for the device that the engine is built on.

    Raises:
        BackendError: There is no device, or it lacks the plugin's instructions.
    """
    target = device_target()
    if target < plugin.least:
        raise BackendError(
            f"{emitter.scope}: plugin {plugin.name}", expected=f"a device of sm_{plugin.least} or later",
            got=f"sm_{target}", fix="Choose a recipe without activations 1x128.",
        )  # fmt: skip
    _register(emitter.trt, plugin)
    definition = getattr(getattr(plugin_module(emitter.trt).op, NAMESPACE), plugin.name)
    # TensorRT compares the order of keywords.
    ordered = {name: attributes[name] for name, _ in plugin.attributes}
    return emitter.network.add_plugin(definition(*inputs, **ordered), aot=True)


@cache
def device_target() -> int:
    """The compute capability of the device that an engine is built on, and for, e.g. 90."""
    major, minor = Device().compute_capability
    return 10 * major + minor


@cache
def _register(trt: Module, plugin: Plugin) -> None:
    register(trt, plugin, device_target)


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {attribute.name: attribute.value for attribute in node.attributes.values()}


def _latent_append(emitter: Emitter, _: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    return PluginCall(emitter)(LATENT_APPEND, inputs)


def _mla_attention(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    said, dims = _attributes(node), node_dims(node)
    if said.get("activations", "none") != "none":
        raise BackendError(
            f"{emitter.scope}: attention with activations {said['activations']}", expected="activations none",
            fix="TensorRT multiplies the latents of the cache as they are: choose that for kv_b in the recipe.",
        )  # fmt: skip
    if emitter.phase != "decode" or emitter.types.compute == "F32":
        return mla_attention(emitter, node, inputs)
    q_nope, q_pe, latents, *weights, start = inputs
    w_uk, w_uv = up_projections(emitter, node, weights)
    query = absorbed_query(emitter, q_nope, w_uk, dims)
    parts = min(power_of_two(-(-emitter.types.capacity // _TOKENS_A_PART)), _MOST_PARTS)
    scale, dtype = float(said["scale"]), emitter.types.compute
    mixed = attend(PluginCall(emitter), query, q_pe, latents, start, scale, parts, dtype)
    lead = emitter.dim(q_nope, 0), emitter.dim(q_nope, 1)
    return [values_of(emitter, mixed, w_uv, lead, dims)]


def _moe_route(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    logits, bias = (emitter.cast(each, emitter.float32) for each in inputs)
    return PluginCall(emitter)(MOE_ROUTE, (logits, bias), **_attributes(node))


def _linear_int(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, numbers, scale, *zero = inputs
    zero_point = zero[0] if zero else None
    return [linear_int(PluginCall(emitter), _activations(emitter, x), numbers, scale, zero_point, **_attributes(node))]


def _linear_fp8(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, weight, scale = inputs
    activations, dtype = _attributes(node)["activations"], emitter.types.compute
    return [linear_fp8_block(PluginCall(emitter), _activations(emitter, x), weight, scale, activations, dtype)]


def _moe_experts(emitter: Emitter, node: ir.Node, inputs: Inputs) -> Sequence[ITensor]:
    x, ids, weights, *banks = inputs
    said, dims = _attributes(node), node_dims(node)
    each = 2 if node.op_type != "MoEExperts" else 1
    zeros = [[zero] for zero in banks[6:] if zero is not None] or [[], [], []]
    gate, up, down = ([*banks[each * place : each * place + each], *zeros[place]] for place in range(3))
    if node.op_type == "MoEExperts":
        format_ = "plain"
    elif node.op_type == "MoEExpertsFp8Block":
        format_ = "fp8" if said["activations"] == "none" else "rounded"
    else:
        format_ = "int with zero points" if zeros[0] else "int"
    y = through_experts(
        PluginCall(emitter),
        _activations(emitter, x),
        ids,
        emitter.cast(weights, emitter.float32),
        (gate, up, down),
        format_,
        experts=dims["E"],
        k=dims["k"],
        block=FEW if emitter.phase == "decode" else MANY,
        dtype=emitter.types.compute,
        **(said if node.op_type == "MoEExpertsInt" else {}),
    )
    return [y]


def _activations(emitter: Emitter, x: ITensor) -> ITensor:
    return emitter.cast(x, emitter.compute)


ROWS: Mapping[Key, Row] = {
    (DOMAIN, "LatentAppend"): Row(_latent_append),
    (DOMAIN, "MlaAttention"): Row(_mla_attention),
    (DOMAIN, "MlaAttentionFp8Block"): Row(_mla_attention),
    (DOMAIN, "MlaAttentionInt"): Row(_mla_attention),
    (DOMAIN, "MoERoute"): Row(_moe_route),
    (DOMAIN, "LinearInt"): Row(_linear_int, as_bits=(1, 3)),
    (DOMAIN, "LinearFp8Block"): Row(_linear_fp8),
    (DOMAIN, "MoEExperts"): Row(_moe_experts),
    (DOMAIN, "MoEExpertsFp8Block"): Row(_moe_experts),
    (DOMAIN, "MoEExpertsInt"): Row(_moe_experts, as_bits=(3, 5, 7, 9, 10, 11)),
}
