"""A text through a model at one recipe after another, beside the float32 model.

Layers before the first one that a recipe changes compute what they compute in float32: they are not run again. All of
the text goes through a layer before any goes through the next, so that one layer's weights are in memory at a time;
between layers, the hidden states of the whole text are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.evaluate import Comparison, compare, sequences
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.capture.calls import Call, Flow, empty_caches
from dsv3export.graphs.executor import DEFAULT_MAX_WEIGHT_BYTES
from dsv3export.graphs.interpreter import run_call, sequence_inputs
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.passes.embedding import embedding_dtype, store_embedding
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.trace import graph_for
from dsv3export.graphs.values import is_weight
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.recipe import LAYER_COMPONENTS, CacheFormat, Recipe

_EMBED, _HEAD, _LAYER = "embed", "head", "layers."


class TextRuns:
    """The float32 model with a text, and others beside it.

    Args:
        checkpoint: The weights.
        token_ids: The text, without BOS.
        chunk_tokens: As for `evaluate.compare`.
        calibration_ids: The sequences that calibrated schemes are fitted to.
        max_weight_bytes: How many bytes of weights to keep in memory.

    Raises RequestError as `evaluate.compare` does.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        token_ids: Sequence[int],
        chunk_tokens: int,
        calibration_ids: Sequence[Sequence[int]] | None = None,
        max_weight_bytes: int = DEFAULT_MAX_WEIGHT_BYTES,
    ) -> None:
        self._checkpoint, self._ids, self._chunk_tokens = checkpoint, token_ids, chunk_tokens
        self._sequences = sequences(checkpoint.config, token_ids, chunk_tokens)
        self._calibration = None if calibration_ids is None else Calibration(checkpoint, calibration_ids)
        self._max_bytes = max_weight_bytes // 2
        self._traced = GraphWithWeights.traced(graph_for(checkpoint.config))
        self._float32 = Recipe.for_precision("fp32")
        self._base = self._model(self._float32)
        self._stages = tuple(self._base.calls)
        self._rewind()
        self._final: Flow[Tensor] | None = None

    def compare(self, recipe: Recipe) -> Comparison:
        """The model at a recipe beside float32. Raises RecipeError, and EngineError where it computes no numbers."""
        model, changed = self._model(recipe), self._changed(recipe)
        first = next((place for place, stage in enumerate(self._stages) if stage in changed), len(self._stages) - 1)
        final = self._float32_at(len(self._stages) - 1) if self._final is None else self._final
        self._final = final.copy()
        flow = self._float32_at(first).copy()
        for stage in self._stages[first:-1]:
            (model if stage in changed else self._base).run_all(stage, flow)
        head = model if _HEAD in changed else self._base
        return compare(
            _LastStage(head, flow, len(self._sequences)),
            _LastStage(self._base, final.copy(), len(self._sequences)),
            self._ids,
            self._chunk_tokens,
        )

    def _model(self, recipe: Recipe) -> _StagedModel:
        config = self._checkpoint.config
        graph = store_embedding(quantise(self._traced, recipe, config), embedding_dtype(self._checkpoint, recipe))
        graph = narrow_cache(graph, recipe.cache, config)
        weights = WeightCache(self._checkpoint, graph.weights, self._max_bytes, self._calibration)
        return _StagedModel(config, graph.model, recipe.cache, weights, self._sequences)

    def _changed(self, recipe: Recipe) -> set[str]:
        """The stages that compute something else than in float32."""
        count = self._checkpoint.config.num_hidden_layers
        changed = {
            f"{_LAYER}{layer}"
            for layer in range(count)
            if any(
                recipe.scheme(each, layer, count) != self._float32.scheme(each, layer, count)
                for each in LAYER_COMPONENTS
            )
        }
        if recipe.components["head"] != self._float32.components["head"]:
            changed.add(_HEAD)
        if embedding_dtype(self._checkpoint, recipe) != embedding_dtype(self._checkpoint, self._float32):
            changed.add(_EMBED)
        return changed

    def _rewind(self) -> None:
        self._flow = self._base.start()
        self._next = 0

    def _float32_at(self, place: int) -> Flow[Tensor]:
        """What flows into a stage of the float32 model, which goes on from where it is or starts again."""
        if place < self._next:
            self._rewind()
        while self._next < place:
            self._base.run_all(self._stages[self._next], self._flow)
            self._next += 1
        return self._flow


class _StagedModel:
    """One recipe's graph, a stage at a time; not to be mistaken for `compare.StagedModel`, which shows inner values."""

    def __init__(
        self,
        config: ModelConfig,
        graph: ir.Model,
        cache: CacheFormat,
        weights: WeightCache,
        token_ids: Sequence[Sequence[int]],
    ) -> None:
        self.config = config
        self._graph, self._cache, self._weights, self._ids = graph, cache, weights, token_ids
        self._nodes = {str(node.name): node for node in self._graph.graph}
        self.calls = {name: Call.of_node(node, is_weight) for name, node in self._nodes.items()}

    def start(self) -> Flow[Tensor]:
        return Flow(list(self.calls.values()), [sequence_inputs(ids) for ids in self._ids])

    def run_all(self, stage: str, flow: Flow[Tensor]) -> None:
        """All sequences through a stage; what no later stage needs is let go of."""
        for place in range(len(self._ids)):
            flow.keep(self.calls[stage], place, self.run(stage, flow, place))
        flow.forget(self.calls[stage])

    def run(self, stage: str, flow: Flow[Tensor], place: int) -> dict[str, Tensor]:
        """One sequence through a stage: its outputs by name."""
        node, call = self._nodes[stage], self.calls[stage]
        given = flow.inputs(call, place, None)
        arrays = empty_caches(self._cache, self.config, call, len(self._ids[place]))
        named = given | {name: torch_tensor(array) for name, array in arrays.items()}
        values = {value: named[str(value.name)] for value in node.inputs if value is not None and not is_weight(value)}
        with torch.inference_mode():
            run_call(self._graph, node, values, self._weights)
        return {str(value.name): values[value] for value in node.outputs}


class _LastStage:
    """A `LanguageModel` that has come as far as the head, and is asked for the chunks of its text in order."""

    def __init__(self, model: _StagedModel, flow: Flow[Tensor], count: int) -> None:
        self.config = model.config
        self._rows: Iterator[NDArray[np.float32]] = (
            model.run(_HEAD, flow, place)["logits"].numpy() for place in range(count)
        )

    def logits(self, token_ids: list[int], /) -> NDArray[np.float32]:
        rows = next(self._rows)
        assert len(rows) == len(token_ids)  # `compare` cuts the text as `sequences` does
        return rows
