"""The weights of each rank of a cut engine, from config, recipe and layout alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsv3export.checkpoint.expected import expected_tensors, layer_of
from dsv3export.config import ModelConfig
from dsv3export.engine.parallel import Layout
from dsv3export.model_size import tensor_part
from dsv3export.recipe import COMPONENTS, Component, Recipe
from dsv3export.sizing.parallel import stage_layers
from dsv3export.sizing.weights import matrix_bytes, up_projection_bytes

_COMPONENTS: Mapping[str, Component] = {component: component for component in COMPONENTS}
_FLOAT = 4
# By the end of a tensor's name: how many ways its rows and its columns are cut, as sizes of a layout.
_ATTENTION_ROWS = (".q_proj.weight", ".q_b_proj.weight", ".kv_b_proj.weight")
_HEADS = ("lm_head.weight", ".shared_head.head.weight")
_UP = (".gate_proj.weight", ".up_proj.weight")


@dataclass(frozen=True)
class RankWeights:
    """What a rank holds.

    Attributes:
        shared: Bytes of what every token is multiplied with.
        experts: Bytes of routed experts.
        idle: Bytes of what a step of the trunk does not read: embedding and MTP layer.
        shared_numbers, expert_numbers: Weights in `shared` and in `experts`, scales not counted.
    """

    shared: int
    experts: int
    idle: int
    shared_numbers: int
    expert_numbers: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.shared + self.experts + self.idle


def rank_weights(config: ModelConfig, recipe: Recipe, layout: Layout, mtp: bool) -> list[RankWeights]:
    """Of each rank, in order; the ranks of a stage have equal shares.

    Norms and routers are counted as float32. Nothing is counted for the table of rotary frequencies.

    Args:
        mtp: Whether the last stage has the MTP layer.
    """
    stages = stage_layers(config, recipe, layout)
    held: list[list[_Part]] = [[] for _ in stages]
    for part in _parts(config, recipe, layout):
        for p in _stages_of(part, stages, config, mtp):
            held[p].append(part)
    each = [_summed(parts, config) for parts in held]
    return [each[layout.coordinates(rank).p] for rank in range(layout.world)]


@dataclass(frozen=True)
class _Part:
    """A rank's part of a tensor."""

    part: str
    layer: int | None
    nbytes: int
    numbers: int


def _parts(config: ModelConfig, recipe: Recipe, layout: Layout) -> Iterator[_Part]:
    shapes = expected_tensors(config)
    if config.tie_word_embeddings:
        shapes = {**shapes, "lm_head.weight": shapes["model.embed_tokens.weight"]}
    for name, shape in shapes.items():
        layer = layer_of(name) if name.startswith("model.layers.") else None
        if layer is not None and name.endswith(".embed_tokens.weight"):
            continue  # the MTP layer looks up the model's own table
        part = "head" if name.endswith((".eh_proj.weight", ".shared_head.head.weight")) else tensor_part(name)
        rows, columns = _cut(name, part, layout)
        cut = tuple(size // ways for size, ways in zip(shape, (rows, columns), strict=False))
        numbers, size = math.prod(cut), math.prod(cut) * _FLOAT
        if part in _COMPONENTS and len(cut) == 2:
            scheme = recipe.scheme(_COMPONENTS[part], layer, config.num_hidden_layers)
            size = matrix_bytes(cut[0], cut[1], scheme)
            if scheme.format in ("int8", "int4") and name.endswith(".kv_b_proj.weight"):
                size = up_projection_bytes(config) // layout.tp
        if part == "routed_experts" and int(name.split(".")[5]) >= config.n_routed_experts // layout.ep:
            continue  # other ranks have those
        yield _Part(part, layer, size, numbers)


def _cut(name: str, part: str, layout: Layout) -> tuple[int, int]:
    """How many ways a matrix's rows and columns are cut."""
    if name.endswith(_ATTENTION_ROWS):
        return layout.tp, 1
    if name.endswith(".o_proj.weight"):
        return 1, layout.tp
    if name.endswith(_HEADS):
        return layout.stage, 1
    if part in ("dense_mlp", "shared_experts", "routed_experts"):
        ways = layout.tp if part == "routed_experts" else layout.stage
        return (ways, 1) if name.endswith(_UP) else (1, ways)
    return 1, 1


def _stages_of(part: _Part, stages: Sequence[range], config: ModelConfig, mtp: bool) -> set[int]:
    """Where a part is held."""
    last = len(stages) - 1
    if part.layer is None:
        if part.part != "embedding":
            return {last}
        return {0, last} if mtp else {0}
    if part.layer >= config.num_hidden_layers:
        return {last} if mtp and part.layer == config.num_hidden_layers else set()
    return {p for p, layers in enumerate(stages) if part.layer in layers}


def _summed(parts: Sequence[_Part], config: ModelConfig) -> RankWeights:
    def is_idle(part: _Part) -> bool:
        return part.part == "embedding" or (part.layer or 0) >= config.num_hidden_layers

    idle = [part for part in parts if is_idle(part)]
    trunk = [part for part in parts if not is_idle(part)]
    experts = [part for part in trunk if part.part == "routed_experts"]
    shared = [part for part in trunk if part.part != "routed_experts"]
    return RankWeights(
        sum(part.nbytes for part in shared), sum(part.nbytes for part in experts),
        sum(part.nbytes for part in idle),
        sum(part.numbers for part in shared), sum(part.numbers for part in experts),
    )  # fmt: skip
