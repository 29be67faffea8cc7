"""What each rank of a cut engine holds and sends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dsv3export.config import ModelConfig
from dsv3export.engine.parallel import Layout, RankPlan, Traffic
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout
from dsv3export.sizing.parallel import stage_layers

# Of a number that ranks hand to each other: float32, in which ONNX Runtime's engines add up.
WIRE_BYTES = 4


def plan_ranks(
    config: ModelConfig, recipe: Recipe, layout: Layout, weight_bytes: Sequence[int], mtp: bool,
    wire_bytes: int = WIRE_BYTES,
) -> list[RankPlan]:  # fmt: skip
    """The plan of each rank, in order.

    Args:
        weight_bytes: Of each rank.
        mtp: Whether the last stage has the MTP layer.
        wire_bytes: Bytes of a number on the wire.
    """
    stages = stage_layers(config, recipe, layout)
    plans = []
    for rank, size in enumerate(weight_bytes):
        layers = stages[layout.coordinates(rank).p]
        plans.append(
            RankPlan(
                rank,
                (layers.start, layers.stop),
                size,
                CacheLayout.of(recipe.cache, config, len(layers)).bytes_per_token,
                tuple(_traffic(config, layout, rank, len(layers), wire_bytes)),
                tuple(_draft_traffic(config, layout, rank, wire_bytes)) if mtp else (),
            )
        )
    return plans


def _traffic(config: ModelConfig, layout: Layout, rank: int, layers: int, wire_bytes: int) -> Iterator[Traffic]:
    """Of a step of the trunk: two sums a layer, the logits, and hidden states from stage to stage."""
    yield from _layer_sums(config, layout, layers, wire_bytes)
    if layout.next(rank) is None:
        yield from _logits(config, layout, rank, wire_bytes)
    else:
        yield Traffic("send", None, 2, 1, config.hidden_size * wire_bytes, "token")


def _draft_traffic(config: ModelConfig, layout: Layout, rank: int, wire_bytes: int) -> Iterator[Traffic]:
    """Of a draft of the MTP layer, which the last stage computes."""
    if layout.next(rank) is None:
        yield from _layer_sums(config, layout, 1, wire_bytes)
        yield from _logits(config, layout, rank, wire_bytes)


def _layer_sums(config: ModelConfig, layout: Layout, layers: int, wire_bytes: int) -> Iterator[Traffic]:
    size = config.hidden_size * wire_bytes
    if layout.tp > 1:
        yield Traffic("all_reduce", "tensor", layout.tp, layers, size, "token")
    if layout.stage > 1:
        yield Traffic("all_reduce", "stage", layout.stage, layers, size, "token")


def _logits(config: ModelConfig, layout: Layout, rank: int, wire_bytes: int) -> Iterator[Traffic]:
    """Logits are gathered on the last stage's first rank, which sends them to rank 0 if that is another one."""
    first = rank == layout.logits_rank
    size = config.vocab_size * wire_bytes
    if layout.stage > 1:
        yield Traffic("gather", "stage", layout.stage, 1, size // layout.stage, "logit", sends=not first)
    if first and rank:
        yield Traffic("send", None, 2, 1, size, "logit")
