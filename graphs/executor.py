"""The graph's executor in torch, float32: the oracle that every backend is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
from dsv3export.graphs.tensors import numpy_array, torch_tensor
from dsv3export.graphs.trace import Part, graph_for
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

DEFAULT_MAX_WEIGHT_BYTES = 4 << 30


class Executor:
    """Runs a checkpoint's graph; also a `Session`, so that the runtime's generation works on top of it.

    Args:
        checkpoint: The weights; read one layer at a time when they exceed `max_weight_bytes`.
        max_weight_bytes: How many bytes of weights to keep in memory.
        recipe: Run the graph at this precision instead of float32: what an engine of that recipe should compute.
        calibration_ids: The sequences that the recipe's calibrated components (method gptq) are fitted to; from
            `calibration_sequences` for an engine's. The MTP layer is not calibrated: it has no drafts then.

    Raises RequestError where the recipe needs a calibration that is not given, or the other way round.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        max_weight_bytes: int = DEFAULT_MAX_WEIGHT_BYTES,
        recipe: Recipe | None = None,
        calibration_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.config: ModelConfig = checkpoint.config
        self.vocab_size = self.config.vocab_size
        chosen = recipe or Recipe.for_precision("fp32")
        self.cache_layout = CacheLayout.of(chosen.cache, self.config)
        self.cache_on_host = True
        self._mtp_cache_layout = CacheLayout.of(chosen.cache, self.config, layers=1)
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
    ) -> Executor:
        """Open and validate a checkpoint directory; raises ConfigError or CheckpointError."""
        return cls(Checkpoint.open(Path(path)), max_weight_bytes, recipe)

    def step(
        self,
        input_ids: NDArray[np.int64],
        start: NDArray[np.int64],
        cache: LatentCache,
        slots: range,
        logit_rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """One step over a contiguous range of slots; see `dsv3export.runtime.session.Session.step`."""
        inputs = {
            "input_ids": torch.from_numpy(input_ids),
            "start": torch.from_numpy(start),
            "logit_rows": torch.from_numpy(logit_rows),
        }
        caches = {name: torch_tensor(array) for name, array in cache.inputs(slots)}
        with torch.inference_mode():
            outputs = run(self._trunk, inputs | caches, self._weights)
        logits: NDArray[np.float32] = outputs["logits"].numpy()
        return logits

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
            seen[name] = numpy_array(value).copy()

        self._whole(token_ids, keep)
        return seen

    def draft_logits(self, token_ids: list[int]) -> NDArray[np.float32]:
        """The MTP layer's drafts: row i is a guess for token i+2 from h_i and token i+1; float32 [len-1, vocab]."""
        if self._mtp is None:
            raise RequestError("draft_logits", expected="a model with num_nextn_predict_layers > 0", got="0")
        self._check(token_ids)
        count = len(token_ids) - 1
        if count < 1:
            raise RequestError("draft_logits", expected="at least 2 tokens", got="1")
        final_hidden = self._whole(token_ids[:-1], None)["final_hidden"]
        cache = LatentCache(self._mtp_cache_layout, 1, count)
        views = cache.inputs(range(1), first_layer=self.config.num_hidden_layers)
        inputs = sequence_inputs(token_ids[1:]) | {name: torch_tensor(array) for name, array in views}
        inputs["final_hidden"] = final_hidden
        with torch.inference_mode():
            drafts: NDArray[np.float32] = run(self._mtp, inputs, self._weights)["logits"].numpy()
        return drafts

    def _whole(self, token_ids: list[int], observe: Observer | None) -> dict[str, torch.Tensor]:
        """Run a whole sequence through the trunk from an empty cache."""
        self._check(token_ids)
        cache = LatentCache(self.cache_layout, 1, len(token_ids))
        caches = {name: torch_tensor(array) for name, array in cache.inputs(range(1))}
        with torch.inference_mode():
            return run(self._trunk, sequence_inputs(token_ids) | caches, self._weights, observe)

    def _check(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise RequestError("token ids", expected="at least one", got="none")
        wrong = [token for token in token_ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise RequestError("token ids", expected=f"0..{self.vocab_size - 1}", got=str(wrong[0]))


def recipe_graph(config: ModelConfig, part: Part, recipe: Recipe, embedding: str = "F32") -> GraphWithWeights:
    """The graph that the executor runs: traced, quantised, embedding and cache in their formats.

    Args:
        embedding: safetensors dtype of the embedding table.
    """
    quantised = quantise(GraphWithWeights.traced(graph_for(config, part)), recipe, config)
    return narrow_cache(store_embedding(quantised, embedding), recipe.cache, config)
