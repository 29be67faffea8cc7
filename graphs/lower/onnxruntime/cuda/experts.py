"""The routed experts for the CUDA provider: com.microsoft.MoE and QMoE, all experts of a layer in one kernel."""

from __future__ import annotations

from dsv3export.graphs.lower.onnxruntime.routing import router_text
from dsv3export.plugins.registry import Attributes, Dims


def experts(dims: Dims, attributes: Attributes) -> str:
    """Weights of any float type; com.microsoft.MoE computes in it."""
    return f"""
MoEExperts (x, ids, weights, gate_up, down) => (y) {{
    narrow = CastLike (x, gate_up)
{_router_text(dims)}
    narrow_router = CastLike (router, gate_up)
    mixed = com.microsoft.MoE <{_routing(dims)}, {_SWIGLU}> (narrow, narrow_router, gate_up, , down)
{_OUT}
}}
"""


def experts_int(dims: Dims, attributes: Attributes) -> str:
    """com.microsoft.QMoE, which computes in the type of its scales and does not round activations.

    The weights are as they are for the CPU; the kernel lays them out anew when the engine is loaded.
    """
    zeros = ", gate_up_zero, down_zero" if "Z" in dims else ""
    behind = f", , , ,{zeros}" if zeros else ""
    return f"""
MoEExpertsInt (x, ids, weights, gate_up, gate_up_scale, down, down_scale{zeros}) => (y) {{
    narrow = CastLike (x, gate_up_scale)
{_router_text(dims)}
    narrow_router = CastLike (router, gate_up_scale)
    mixed = com.microsoft.QMoE <{_routing(dims)}, {_SWIGLU}, expert_weight_bits = {attributes["bits"]},
        block_size = {attributes["group"]}, weights_prepacked = 0>
        (narrow, narrow_router, gate_up, gate_up_scale, , down, down_scale{behind})
{_OUT}
}}
"""


_SWIGLU = 'activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.0, activation_beta = 0.0'
_OUT = """    wide = Cast <to = 1> (mixed)
    y = Mul (wide, total)"""


def _routing(dims: Dims) -> str:
    return f"k = {dims['k']}, normalize_routing_weights = 1"


def _router_text(dims: Dims) -> str:
    """As `router_text`, of weights over the largest weight: what a narrow type rounds is small then.

    QMoE has an input for the weights themselves, but the CUDA kernel does not read it.
    """
    return f"""
    choices = Constant <value_ints = [-1]> ()
    largest = ReduceMax <keepdims = 1> (weights, choices)
    shares = Div (weights, largest)
{router_text(dims, "shares")}"""
