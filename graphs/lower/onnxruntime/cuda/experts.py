"""The routed experts for the CUDA provider: com.microsoft.MoE and QMoE, all experts of a layer in one kernel."""

from __future__ import annotations

from dsv3export.plugins.registry import Attributes, Dims


def experts(dims: Dims, attributes: Attributes) -> str:
    """Weights of any float type; com.microsoft.MoE computes in it."""
    return f"""
MoEExperts (x, ids, weights, gate_up, down) => (y) {{
    narrow = CastLike (x, gate_up)
{_router_text(dims)}
    router = CastLike (logits, gate_up)
    mixed = com.microsoft.MoE <{_routing(dims)}, {_SWIGLU}> (narrow, router, gate_up, , down)
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
    router = CastLike (logits, gate_up_scale)
    mixed = com.microsoft.QMoE <{_routing(dims)}, {_SWIGLU}, expert_weight_bits = {attributes["bits"]},
        block_size = {attributes["group"]}, weights_prepacked = 0>
        (narrow, router, gate_up, gate_up_scale, , down, down_scale{behind})
{_OUT}
}}
"""


_SWIGLU = 'activation_type = "swiglu", swiglu_fusion = 1, activation_alpha = 1.0, activation_beta = 0.0'
_OUT = """    wide = Cast <to = 1> (mixed)
    y = Mul (wide, total)"""


def _routing(dims: Dims) -> str:
    return f"k = {dims['k']}, normalize_routing_weights = 1"


def _router_text(dims: Dims) -> str:
    """ONNX text: float32 `logits`, whose softmax over the k best is what MoERoute chose, and `total`, their sum.

    They are log(weight / largest weight) of the chosen experts, so that what a narrow type rounds is small, and a very
    low number elsewhere. QMoE has an input for the weights themselves, but the CUDA kernel does not read it.
    """
    return f"""
    last = Constant <value_ints = [-1]> ()
    largest = ReduceMax <keepdims = 1> (weights, last)
    shares = Div (weights, largest)
    tiny = Constant <value_float = 1e-30> ()
    positive = Max (shares, tiny)
    logs = Log (positive)
    tokens = Shape <start = 0, end = 1> (ids)
    experts = Constant <value_ints = [{dims["E"]}]> ()
    shape = Concat <axis = 0> (tokens, experts)
    unchosen = ConstantOfShape <value = float[1] {{-1000.0}}> (shape)
    logits = ScatterElements <axis = 1> (unchosen, ids, logs)
    total = ReduceSum <keepdims = 1> (weights, last)"""
