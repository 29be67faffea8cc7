"""The lowered graphs of each rank of an engine: of the one that a whole engine has, or of all that it is cut for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.parallel import Layout, rank_folder
from dsv3export.graphs.backend import Backend
from dsv3export.graphs.executor import quantised_graph
from dsv3export.graphs.passes.embedding import embedding_dtype
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.shard.shard import shard
from dsv3export.graphs.shard.stage import stage_graph
from dsv3export.graphs.trace import Part
from dsv3export.progress import Progress
from dsv3export.recipe import Recipe
from dsv3export.sizing.parallel import stage_layers


@dataclass(frozen=True)
class RankGraphs:
    """What one rank runs.

    Attributes:
        rank: Its number; None for the only one of a whole engine.
        graphs: Its lowered graphs.
        received: The input of the trunk's graph that comes from the previous stage.
        sent: The output that goes to the next one.
    """

    rank: int | None
    graphs: Mapping[Part, GraphWithWeights]
    received: str | None = None
    sent: str | None = None

    @property
    def folder(self) -> str:
        """Of the rank's part, relative to the engine."""
        return "" if self.rank is None else rank_folder(self.rank)


def lowered_ranks(
    checkpoint: Checkpoint,
    recipe: Recipe,
    backend: Backend,
    parts: Sequence[Part],
    layout: Layout,
    layers: Sequence[int] | None,
    progress: Progress,
) -> list[RankGraphs]:
    """Trace and quantise once; then cut and lower for each rank.

    Args:
        parts: Of the model; the MTP layer goes to the last stage.
        layers: Of a whole engine: as for `quantised_graph`.
    """
    embedding = embedding_dtype(checkpoint, recipe)
    wholes = {
        part: quantised_graph(checkpoint.config, part, recipe, embedding, layers if part == "trunk" else None)
        for part in parts
    }
    if layout.world == 1:
        return [RankGraphs(None, {part: backend.lower(graph, recipe, checkpoint) for part, graph in wholes.items()})]
    progress.start("cutting the graph", layout.world, "ranks")
    stages = stage_layers(checkpoint.config, recipe, layout)
    borders = [None, *(f"layers.{layers[-1]}.hidden" for layers in stages[:-1]), None]
    ranks = []
    for rank, cut in enumerate(_cut(wholes, layout, stages)):
        graphs = {part: backend.lower(shard(graph, layout, rank), recipe, checkpoint) for part, graph in cut.items()}
        p = layout.coordinates(rank).p
        ranks.append(RankGraphs(rank, graphs, borders[p], borders[p + 1]))
        progress.advance(1)
    progress.finish()
    return ranks


def _cut(
    wholes: Mapping[Part, GraphWithWeights], layout: Layout, stages: Sequence[range]
) -> Iterator[dict[Part, GraphWithWeights]]:
    """The graphs of the stage of each rank."""
    for p, layers in enumerate(stages):
        last = p == layout.pp - 1
        cut: dict[Part, GraphWithWeights] = {"trunk": stage_graph(wholes["trunk"], layers, p == 0, last)}
        if last and "mtp" in wholes:
            cut["mtp"] = wholes["mtp"]
        for _ in range(layout.stage):
            yield cut
