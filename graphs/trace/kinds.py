"""The layer kinds: what is traced, with which arguments, under which names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dsv3export.config import ModelConfig
from dsv3export.reference import DecoderLayer, Embedding, Head, MtpLayer

# Sizes of the example arguments: all different and above 1, so that torch.export keeps the dimensions apart.
EXAMPLE_SIZES = {"B": 2, "S": 3, "T": 11, "R": 5}


@dataclass(frozen=True)
class Argument:
    """A run-time input of a layer kind: its dimensions by symbol or size, e.g. ``("B", "S", 7168)``."""

    name: str
    dims: tuple[str | int, ...]
    dtype: torch.dtype = torch.float32

    def example(self) -> torch.Tensor:
        """A meta tensor of this shape."""
        sizes = [EXAMPLE_SIZES[dim] if isinstance(dim, str) else dim for dim in self.dims]
        return torch.empty(sizes, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class LayerKind:
    """A unit that is traced once.

    Args:
        name: The ONNX function's name.
        module: Builds the reference module.
        arguments: Its forward arguments, in order.
        results: Names of its forward results, in order.
    """

    name: str
    module: Callable[[], nn.Module]
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]


def layer_kinds(config: ModelConfig) -> dict[str, LayerKind]:
    """Every kind that a model of this config may need, by name."""
    hidden = ("B", "S", config.hidden_size)
    angles = ("B", "S", config.qk_rope_head_dim // 2)
    start = Argument("start", ("B",), torch.int64)
    layer_arguments = (
        start,
        Argument("cos", angles),
        Argument("sin", angles),
        Argument("cache", ("B", "T", config.latent_width)),
    )
    rows = Argument("logit_rows", ("R",), torch.int64)
    moe = bool(config.n_routed_experts)
    layer = (Argument("hidden", hidden), *layer_arguments)
    mtp = (Argument("embedded", hidden), Argument("final_hidden", hidden), *layer_arguments, rows)
    ids = Argument("input_ids", ("B", "S"), torch.int64)
    kinds = [
        LayerKind("embed", lambda: Embedding(config), (ids, start), ("hidden", "cos", "sin")),
        LayerKind("dense_layer", lambda: DecoderLayer(config, moe=False), layer, ("hidden", "updated")),
        LayerKind("moe_layer", lambda: DecoderLayer(config, moe=True), layer, ("hidden", "updated")),
        LayerKind("head", lambda: Head(config), (Argument("hidden", hidden), rows), ("logits", "final_hidden")),
        LayerKind("mtp_layer", lambda: MtpLayer(config, moe), mtp, ("logits", "draft_hidden", "updated")),
    ]
    return {kind.name: kind for kind in kinds}
