"""All ranks of a cut model in one process: the executor runs each rank's graph in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.parallel import Group, Layout
from dsv3export.graphs.executor import quantised_graph
from dsv3export.graphs.interpreter import run
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.passes.embedding import embedding_dtype
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.shard import shard, stage_graph
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.trace import Part
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.plugins.collectives import speaking_to
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.sizing.parallel import stage_layers

_SECONDS = 60
Value = TypeVar("Value")


class Exchange:
    """What the ranks of one group hand to each other; every rank sees the parts in the group's order."""

    def __init__(self, ranks: range) -> None:
        self._ranks = ranks
        self._barrier = threading.Barrier(len(ranks), timeout=_SECONDS)
        self._parts: dict[int, Any] = {}

    def all(self, rank: int, part: Value) -> list[Value]:
        """All ranks' parts."""
        self._parts[rank] = part
        self._barrier.wait()
        parts = [self._parts[each] for each in self._ranks]
        self._barrier.wait()
        return parts

    def abort(self) -> None:
        self._barrier.abort()


class ThreadCommunicator:
    """A `TensorCommunicator` of one rank; counts the bytes that it is handed."""

    def __init__(self, rank: int, layout: Layout, exchanges: Mapping[range, Exchange]) -> None:
        self._rank, self._layout, self._exchanges = rank, layout, exchanges
        self.bytes: dict[str, int] = {}

    def all_reduce(self, x: Tensor, group: Group) -> Tensor:
        return torch.stack(self._all("all_reduce", x, group)).sum(0)

    def gather(self, x: Tensor, group: Group) -> Tensor:
        return torch.cat(self._all("gather", x, group), dim=-1)

    def _all(self, op: str, x: Tensor, group: Group) -> list[Tensor]:
        self.bytes[op] = self.bytes.get(op, 0) + x.nbytes
        return self._exchanges[self._layout.group(self._rank, group)].all(self._rank, x)


def whole_graphs(checkpoint: Checkpoint, recipe: Recipe) -> dict[Part, GraphWithWeights]:
    """The quantised graphs of trunk and MTP layer; those of the latest model are kept, as tracing takes a second."""
    key = checkpoint.path, repr(recipe)
    if key not in _TRACED:
        _TRACED.clear()
        parts: tuple[Part, ...] = ("trunk", "mtp") if checkpoint.config.num_nextn_predict_layers else ("trunk",)
        embedding = embedding_dtype(checkpoint, recipe)
        _TRACED[key] = {part: quantised_graph(checkpoint.config, part, recipe, embedding) for part in parts}
    return _TRACED[key]


_TRACED: dict[tuple[Path, str], dict[Part, GraphWithWeights]] = {}


class SimulatedRanks:
    """A model cut by a layout; steps as those of a session, logits and hidden states from the last stage's first rank.

    Args:
        checkpoint: The weights.
        recipe: What they are quantised to, before they are cut.
    """

    def __init__(self, checkpoint: Path, layout: Layout, recipe: Recipe | None = None) -> None:
        opened = Checkpoint.open(checkpoint)
        self.config, self.layout = opened.config, layout
        self.recipe = recipe or Recipe.for_precision("fp32")
        wholes = whole_graphs(opened, self.recipe)
        self.stages = stage_layers(self.config, self.recipe, layout)
        self.graphs = [self._graphs(rank, wholes) for rank in range(layout.world)]
        self.weights = [
            WeightCache(opened, {k: v for graph in graphs.values() for k, v in graph.weights.items()}, 1 << 30)
            for graphs in self.graphs
        ]
        groups = {layout.group(rank, group) for rank in range(layout.world) for group in ("tensor", "stage")}
        self._exchanges = {group: Exchange(group) for group in groups}
        self.communicators = [ThreadCommunicator(rank, layout, self._exchanges) for rank in range(layout.world)]

    def new_caches(self, slots: int, capacity: int) -> list[LatentCache]:
        """The trunk's cache of each rank."""
        return [
            LatentCache(CacheLayout.of(self.recipe.cache, self.config, len(self._layers(rank))), slots, capacity)
            for rank in range(self.layout.world)
        ]

    def new_draft_caches(self, slots: int, capacity: int) -> list[LatentCache]:
        """That of the MTP layer; those of other stages are not used."""
        layout = CacheLayout.of(self.recipe.cache, self.config, 1)
        return [LatentCache(layout, slots, capacity) for _ in range(self.layout.world)]

    def step(
        self, ids: NDArray[np.int64], start: NDArray[np.int64], caches: list[LatentCache], slots: range,
        rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
        """Logits [R, V] and final hidden states [B, S, D], which all ranks of the last stage must agree upon."""
        inputs: dict[str, Any] = {"input_ids": ids, "start": start, "logit_rows": rows}
        hidden: dict[str, Tensor] = {}
        outputs: list[dict[str, Tensor]] = []
        for p in range(self.layout.pp):
            ranks = range(p * self.layout.stage, (p + 1) * self.layout.stage)
            given = {name: torch_tensor(array) for name, array in inputs.items()} | hidden
            outputs = self._together(
                ranks, lambda rank, given=given: self._run("trunk", rank, given, caches[rank].inputs(slots))
            )
            hidden = {name: value for name, value in outputs[0].items() if name.endswith(".hidden")}
        for other in outputs[1:]:
            assert torch.equal(other["final_hidden"], outputs[0]["final_hidden"])
        return outputs[0]["logits"].numpy(), outputs[0]["final_hidden"].numpy()

    def draft(
        self, hidden: NDArray[np.float32], ids: NDArray[np.int64], start: NDArray[np.int64],
        caches: list[LatentCache], slots: range, rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:  # fmt: skip
        """As `DraftingSession.draft`, without the hidden states."""
        arrays = {"input_ids": ids, "start": start, "logit_rows": rows, "final_hidden": hidden}
        given = {name: torch_tensor(array) for name, array in arrays.items()}
        first = self.config.num_hidden_layers
        ranks = self.layout.group(self.layout.logits_rank, "stage")
        outputs = self._together(ranks, lambda rank: self._run("mtp", rank, given, caches[rank].inputs(slots, first)))
        return outputs[0]["logits"].numpy()

    def _layers(self, rank: int) -> range:
        return self.stages[self.layout.coordinates(rank).p]

    def _graphs(self, rank: int, wholes: Mapping[Part, GraphWithWeights]) -> dict[Part, GraphWithWeights]:
        last = self.layout.next(rank) is None
        stage = stage_graph(wholes["trunk"], self._layers(rank), self.layout.previous(rank) is None, last)
        graphs: dict[Part, GraphWithWeights] = {"trunk": stage}
        if last and "mtp" in wholes:
            graphs["mtp"] = wholes["mtp"]
        return {
            part: narrow_cache(shard(graph, self.layout, rank), self.recipe.cache, self.config)
            for part, graph in graphs.items()
        }

    def _run(
        self, part: Part, rank: int, given: Mapping[str, Tensor], caches: Any
    ) -> dict[str, Tensor]:  # fmt: skip
        with speaking_to(self.communicators[rank]), torch.inference_mode():
            inputs = {**given, **{name: torch_tensor(array) for name, array in caches}}
            return run(self.graphs[rank][part].model, inputs, self.weights[rank])

    def _together(self, ranks: range, work: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        def one(rank: int) -> dict[str, Tensor]:
            try:
                return work(rank)
            except BaseException:
                for exchange in self._exchanges.values():
                    exchange.abort()
                raise

        with ThreadPoolExecutor(len(ranks)) as pool:
            return list(pool.map(one, ranks))
