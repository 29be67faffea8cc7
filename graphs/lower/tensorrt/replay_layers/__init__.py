"""TensorRT's layers on torch tensors, as NVIDIA's operator reference defines them: adding call -> `Rule`."""

from dsv3export.graphs.lower.tensorrt.replay_layers import (
    arithmetic,
    attention,
    indexing,
    pointwise,
    quantisation,
    shapes,
)
from dsv3export.graphs.lower.tensorrt.replay_layers.layer import Layer, ReplayError, Rule

RULES: dict[str, Rule] = {
    **arithmetic.RULES,
    **attention.RULES,
    **indexing.RULES,
    **pointwise.RULES,
    **quantisation.RULES,
    **shapes.RULES,
}

__all__ = ["RULES", "Layer", "ReplayError", "Rule"]
