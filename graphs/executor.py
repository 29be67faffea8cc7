"""The graph's executor in torch, float32: the oracle that every backend is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.errors import RequestError
from dsv3export.graphs.buildable import check_calibration
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.interpreter import Observer, run, sequence_inputs
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.passes.embedding import embedding_dtype, store_embedding
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import verify
from dsv3export.graphs.tensors import numpy_array, torch_tensor
from dsv3export.graphs.trace import Part, graph_for
from dsv3export.graphs.triton_kernels import TritonKernels
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.recipe import Recipe, Scheme
from dsv3export.runtime.drafting import draft_logits, no_drafts
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

DEFAULT_MAX_WEIGHT_BYTES = 4 << 30


class Executor:
    """Runs a checkpoint's graph; also a `DraftingSession`, so that the runtime's generation works on top of it.

    Args:
        checkpoint: The weights; read one layer at a time when they exceed `max_weight_bytes`.
        max_weight_bytes: How many bytes of weights to keep in memory.
        recipe: Run the graph at this precision instead of float32: what an engine of that recipe should compute.
        calibration_ids: The sequences that the recipe's calibrated components (method gptq) are fitted to; from
            `calibration_sequences` for an engine's. The MTP layer is not calibrated: see `part_recipe`.
        kernels: Compute the nodes by these, on their device, instead of by the ops' definitions.

    Raises RequestError where the recipe needs a calibration that is not given, or the other way round.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_weight_bytes: int = DEFAULT_MAX_WEIGHT_BYTES,
        recipe: Recipe | None = None,
        calibration_ids: Sequence[Sequence[int]] | None = None,
        kernels: TritonKernels | None = None,
    ) -> None:
        self._kernels = kernels
        self.config: ModelConfig = checkpoint.config
        self.vocab_size = self.config.vocab_size
        chosen = recipe or Recipe.for_precision("fp32")
        self.cache_layout = CacheLayout.of(chosen.cache, self.config)
        self.cache_on_host = True
        self._draft_cache_layout = CacheLayout.of(chosen.cache, self.config, layers=1)
        check_calibration(chosen, calibration_ids is not None)
        calibration = None if calibration_ids is None else Calibration(checkpoint, calibration_ids)
        trunk = recipe_graph(self.config, "trunk", chosen, embedding_dtype(checkpoint, chosen))
        mtp = None
        if self.config.num_nextn_predict_layers:
            mtp = recipe_graph(self.config, "mtp", chosen, embedding_dtype(checkpoint, chosen))
        self._trunk, self._mtp = trunk.model, mtp.model if mtp else None
        exprs = {**trunk.weights, **(mtp.weights if mtp else {})}
        self._weights = WeightCache(checkpoint, exprs, max_weight_bytes, calibration)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        max_weight_bytes: int = DEFAULT_MAX_WEIGHT_BYTES,
        recipe: Recipe | None = None,
        kernels: TritonKernels | None = None,
    ) -> Executor:
        """Open and validate a checkpoint directory; raises ConfigError or CheckpointError."""
        return cls(Checkpoint.open(Path(path)), max_weight_bytes, recipe, kernels=kernels)

    def step(
        self,
        input_ids: NDArray[np.int64],
        start: NDArray[np.int64],
        cache: LatentCache,
        slots: range,
        logit_rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """One step over a contiguous range of slots; see `dsv3export.runtime.session.Session.step`."""
        return self.step_hidden(input_ids, start, cache, slots, logit_rows)[0]

    def step_hidden(
        self,
        input_ids: NDArray[np.int64],
        start: NDArray[np.int64],
        cache: LatentCache,
        slots: range,
        logit_rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `dsv3export.runtime.session.DraftingSession.step_hidden`."""
        inputs = {"input_ids": input_ids, "start": start, "logit_rows": logit_rows, **dict(cache.inputs(slots))}
        outputs = self._step(self._trunk, inputs)
        return outputs["logits"], outputs["final_hidden"]

    @property
    def draft_cache_layout(self) -> CacheLayout:
        """Of the MTP layer's cache. Raises RequestError where the model has no such layer."""
        self._drafter()
        return self._draft_cache_layout

    def draft(
        self,
        hidden: NDArray[np.float32],
        next_ids: NDArray[np.int64],
        start: NDArray[np.int64],
        cache: LatentCache,
        slots: range,
        logit_rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `dsv3export.runtime.session.DraftingSession.draft`."""
        inputs: dict[str, NDArray[Any]] = {"input_ids": next_ids, "start": start, "logit_rows": logit_rows}
        inputs |= {"final_hidden": hidden, **dict(cache.inputs(slots, self.config.num_hidden_layers))}
        outputs = self._step(self._drafter(), inputs)
        return outputs["logits"], outputs["draft_hidden"]

    def _step(self, model: ir.Model, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = {name: torch_tensor(array) for name, array in inputs.items()}
        outputs = self._run(model, tensors, None)
        floats = ("logits", "final_hidden", "draft_hidden")
        return {name: outputs[name].numpy() for name in floats if name in outputs}

    def _run(
        self, model: ir.Model, inputs: Mapping[str, torch.Tensor], observe: Observer | None
    ) -> dict[str, torch.Tensor]:
        """The results on the host, as float32; caches are updated in place, wherever they were updated."""
        with torch.inference_mode():
            if self._kernels is None:
                return run(model, inputs, self._weights, observe)
            outputs = run(model, self._kernels.place(inputs), self._weights, observe, self._kernels)
            for name, value in inputs.items():
                updated = outputs.get(f"{name}.updated", value)
                if updated.data_ptr() != value.data_ptr():
                    value.copy_(updated)
            return {name: self._kernels.shown(value) for name, value in outputs.items()}

    def _drafter(self) -> ir.Model:
        if self._mtp is None:
            raise no_drafts(str(self._weights.checkpoint.path))
        return self._mtp

    def logits(self, token_ids: list[int]) -> NDArray[np.float32]:
        """Logits after each token: float32 [len, vocab]."""
        return self._whole(token_ids, None)["logits"].numpy()

    def intermediates(self, token_ids: list[int]) -> dict[str, NDArray[np.generic]]:
        """Every value that the graph computes for a sequence, by provenance name.

        ``layers.3`` is the residual stream after layer 3, ``layers.3.mlp.gate.ids`` its router's choice,
        ``embed_tokens``, ``norm`` and ``lm_head`` the ends. The latent caches come as computed, [1, len, W], in their
        own dtype.
        """
        seen: dict[str, NDArray[np.generic]] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            seen[name] = numpy_array(self._kernels.shown(value) if self._kernels else value).copy()

        self._whole(token_ids, keep)
        return seen

    def draft_logits(self, token_ids: list[int]) -> NDArray[np.float32]:
        """The MTP layer's drafts: row i is a guess for token i+2 from h_i and token i+1; float32 [len-1, vocab]."""
        self._check(token_ids)
        return draft_logits(self, token_ids, chunk=len(token_ids))

    def _whole(self, token_ids: list[int], observe: Observer | None) -> dict[str, torch.Tensor]:
        """Run a whole sequence through the trunk from an empty cache."""
        self._check(token_ids)
        cache = LatentCache(self.cache_layout, 1, len(token_ids))
        caches = {name: torch_tensor(array) for name, array in cache.inputs(range(1))}
        return self._run(self._trunk, sequence_inputs(token_ids) | caches, observe)

    def _check(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise RequestError("token ids", expected="at least one", got="none")
        wrong = [token for token in token_ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise RequestError("token ids", expected=f"0..{self.vocab_size - 1}", got=str(wrong[0]))


def recipe_graph(
    config: ModelConfig,
    part: Part,
    recipe: Recipe,
    embedding: str = "F32",
) -> GraphWithWeights:
    """The graph that the executor runs: that of `quantised_graph`, with the cache in its format."""
    graph = quantised_graph(config, part, recipe, embedding)
    return narrow_cache(graph, recipe.cache, config)


def quantised_graph(
    config: ModelConfig,
    part: Part,
    recipe: Recipe,
    embedding: str = "F32",
    layers: Sequence[int] | None = None,
) -> GraphWithWeights:
    """Trace and quantise; what each stage hands on is checked.

    Args:
        embedding: safetensors dtype of the embedding table.
        layers: As for `graph_for`.
    """
    traced = graph_for(config, part) if layers is None else graph_for(config, part, layers)
    verify(traced)
    quantised = quantise(GraphWithWeights.traced(traced), part_recipe(recipe, part), config)
    graph = store_embedding(quantised, embedding)
    verify(graph.model)
    return graph


def part_recipe(recipe: Recipe, part: Part) -> Recipe:
    """What a recipe says of a part of the model.

    Calibration runs the trunk over its text, and knows nothing of what the MTP layer's weights are multiplied with:
    where the trunk's integers are fitted to the text (`gptq`), those of the MTP layer are chosen as without a text.
    """
    return recipe if part == "trunk" else recipe.with_schemes(Scheme.without_calibration)
