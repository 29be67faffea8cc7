"""How com.microsoft.MoE and QMoE, which route by themselves, are made to route as MoERoute did."""

from __future__ import annotations

from dsv3export.plugins.registry import Dims


def router_text(dims: Dims, shares: str) -> str:
    """ONNX text: `router`, what com.microsoft.MoE must see to choose `ids` with `weights`, and `total`.

    It routes by itself: softmax over its router input, the k best, renormalised. Given log(weight) for the chosen
    experts and a very low value elsewhere, that softmax is weight / sum(weights): exactly the choice and the
    proportions of MoERoute; the sum is multiplied back afterwards.

    Args:
        shares: What the logarithm is taken of: the weights, or something proportional to each token's.
    """
    return f"""
    last = Constant <value_ints = [-1]> ()
    tiny = Constant <value_float = 1e-30> ()
    positive = Max ({shares}, tiny)
    logs = Log (positive)
    tokens = Shape <start = 0, end = 1> (ids)
    experts = Constant <value_ints = [{dims["E"]}]> ()
    shape = Concat <axis = 0> (tokens, experts)
    unchosen = ConstantOfShape <value = float[1] {{-1000.0}}> (shape)
    router = ScatterElements <axis = 1> (unchosen, ids, logs)
    total = ReduceSum <keepdims = 1> (weights, last)"""
