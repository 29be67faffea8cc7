"""A checkpoint's executor, one stage at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv3export.checkpoint import Checkpoint
from dsv3export.compare.stages import Array, Values
from dsv3export.graphs.buildable import check_calibration
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.capture.calls import Call, Flow, empty_caches
from dsv3export.graphs.executor import DEFAULT_MAX_WEIGHT_BYTES, recipe_graph
from dsv3export.graphs.interpreter import run_call, sequence_inputs
from dsv3export.graphs.passes.embedding import embedding_dtype
from dsv3export.graphs.streamed_bank import Argument, held
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.values import is_weight
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout

_SHOWN = (torch.float32, torch.int64)
_BIAS = "mlp.gate.e_score_correction_bias"


class ExecutorStages:
    """A `StagedModel` of a checkpoint.

    Args:
        checkpoint: Read one stage at a time.
        prompts: Token ids of each, run as a whole.
        recipe: What to compute; float32 by default.
        calibration_ids: As `Executor`'s.

    Raises RequestError where the recipe needs a calibration that is not given.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[Sequence[int]],
        recipe: Recipe | None = None,
        calibration_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.config = checkpoint.config
        chosen = recipe or Recipe.for_precision("fp32")
        self.label = f"{checkpoint.path} (executor, {chosen.precision})"
        check_calibration(chosen, calibration_ids is not None)
        calibration = None if calibration_ids is None else Calibration(checkpoint, calibration_ids)
        self._graph = recipe_graph(self.config, "trunk", chosen, embedding_dtype(checkpoint, chosen))
        self._weights = WeightCache(checkpoint, self._graph.weights, DEFAULT_MAX_WEIGHT_BYTES, calibration)
        self._nodes = {str(node.name): node for node in self._graph.model.graph}
        self._calls = {name: _call(node) for name, node in self._nodes.items()}
        self._layout = CacheLayout.of(chosen.cache, self.config)
        self._lengths = [len(ids) for ids in prompts]
        self._flow: Flow[Tensor] = Flow(list(self._calls.values()), [sequence_inputs(ids) for ids in prompts])

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._calls)

    @contextmanager
    def open(self, stage: str) -> Iterator[_OpenStage]:
        """See `StagedModel.open`."""
        call, node = self._calls[stage], self._nodes[stage]
        weights = [value for value in node.inputs if value is not None and is_weight(value)]
        opened = {str(value.name): self._weights[str(value.name)] for value in weights}
        caches = [empty_caches(self._layout, call, length) for length in self._lengths]
        yield _OpenStage(self._graph.model, node, call, opened, self._flow, caches)
        self._flow.forget(call)


class _OpenStage:
    """A `Stage`."""

    def __init__(
        self,
        model: ir.Model,
        node: ir.Node,
        call: Call,
        weights: Mapping[str, Argument],
        flow: Flow[Tensor],
        caches: Sequence[Mapping[str, Array]],
    ) -> None:
        self._model, self._node, self._call, self._flow = model, node, call, flow
        self._weights, self._caches = weights, caches
        self.output = call.path or {"embed": "embed_tokens", "head": "lm_head"}[call.stage]

    @property
    def router_bias(self) -> NDArray[np.float32] | None:
        found = [held(weight).numpy() for name, weight in self._weights.items() if name.endswith(_BIAS)]
        return found[0] if found else None

    def run(self, prompt: int, hidden: NDArray[np.float32] | None = None) -> Values:
        seen: dict[str, Array] = {}

        def observe(name: str, value: Tensor) -> None:
            if value.dtype in _SHOWN:
                seen[name] = value.numpy()

        given = None if hidden is None else torch.from_numpy(hidden)
        by_name = self._flow.inputs(self._call, prompt, given)
        caches = {name: torch_tensor(array.copy()) for name, array in self._caches[prompt].items()}
        inputs = {value: (by_name | caches)[str(value.name)] for value in self._node.inputs
                  if value is not None and not is_weight(value)}  # fmt: skip
        with torch.inference_mode():
            run_call(self._model, self._node, inputs, self._weights, observe)
        if hidden is None:
            outputs = {str(value.name): inputs[value] for value in self._node.outputs}
            self._flow.keep(self._call, prompt, outputs)
        return seen


def _call(node: ir.Node) -> Call:
    inputs = tuple(str(value.name) for value in node.inputs if value is not None and not is_weight(value))
    outputs = tuple(str(value.name) for value in node.outputs)
    return Call(str(node.name), node.metadata_props["dsv3.path"], inputs, outputs)
