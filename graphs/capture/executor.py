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
from dsv3export.graphs.capture.calls import FINAL_HIDDEN, NEXT_IDS, ROUTER_BIAS, Call, Flow, empty_caches, tokens_after
from dsv3export.graphs.executor import DEFAULT_MAX_WEIGHT_BYTES, recipe_graph
from dsv3export.graphs.interpreter import run_call, sequence_inputs
from dsv3export.graphs.passes.embedding import embedding_dtype
from dsv3export.graphs.rewrite import merged_weights
from dsv3export.graphs.streamed_bank import Argument, held
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.trace import Part
from dsv3export.graphs.triton_kernels import TritonKernels
from dsv3export.graphs.values import is_weight
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.recipe import Recipe

_SHOWN = (torch.float32, torch.int64)


class ExecutorStages:
    """A `StagedModel` of a checkpoint.

    Args:
        checkpoint: Read one stage at a time.
        prompts: Token ids of each, run as a whole.
        recipe: What to compute; float32 by default.
        calibration_ids, kernels: As `Executor`'s.

    Raises RequestError where the recipe needs a calibration that is not given.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Sequence[Sequence[int]],
        recipe: Recipe | None = None,
        calibration_ids: Sequence[Sequence[int]] | None = None,
        kernels: TritonKernels | None = None,
    ) -> None:
        self.config, self._kernels = checkpoint.config, kernels
        chosen = recipe or Recipe.for_precision("fp32")
        how = f", {kernels.label}" if kernels else ""
        self.label = f"{checkpoint.path} (executor, {chosen.precision}{how})"
        check_calibration(chosen, calibration_ids is not None)
        calibration = None if calibration_ids is None else Calibration(checkpoint, calibration_ids)
        parts: tuple[Part, ...] = ("trunk", "mtp") if self.config.num_nextn_predict_layers else ("trunk",)
        embedding = embedding_dtype(checkpoint, chosen)
        graphs = {part: recipe_graph(self.config, part, chosen, embedding) for part in parts}
        exprs = merged_weights(graphs.values())
        self._weights = WeightCache(checkpoint, exprs, DEFAULT_MAX_WEIGHT_BYTES, calibration)
        trunk = graphs["trunk"].model
        self._programs: dict[str, tuple[Call, ir.Model, Sequence[ir.Node]]] = {
            str(node.name): (Call.of_node(node, is_weight), trunk, [node]) for node in trunk.graph
        }
        if "mtp" in graphs:
            mtp = graphs["mtp"].model
            call = Call.of_mtp(mtp.graph, is_weight)
            self._programs[call.stage] = (call, mtp, list(mtp.graph))
        self._cache_format = chosen.cache
        self._lengths = [len(ids) for ids in prompts]
        self._flow: Flow[Tensor] = Flow(
            [call for call, *_ in self._programs.values()], [_given(ids) for ids in prompts]
        )

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self._programs)

    @contextmanager
    def open(self, stage: str) -> Iterator[_OpenStage]:
        """See `StagedModel.open`."""
        call, model, nodes = self._programs[stage]
        weights = [value for node in nodes for value in node.inputs if value is not None and is_weight(value)]
        opened = {str(value.name): self._weights[str(value.name)] for value in weights}
        caches = [empty_caches(self._cache_format, self.config, call, length) for length in self._lengths]
        yield _OpenStage(model, nodes, call, opened, self._flow, caches, self._kernels)
        self._flow.forget(call)
        self._weights.forget()


class _OpenStage:
    """A `Stage`."""

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        call: Call,
        weights: Mapping[str, Argument],
        flow: Flow[Tensor],
        caches: Sequence[Mapping[str, Array]],
        kernels: TritonKernels | None,
    ) -> None:
        self._model, self._nodes, self._call, self._flow = model, nodes, call, flow
        self._weights, self._caches, self._kernels = weights, caches, kernels
        self.output, self.handed_on = call.output, call.handed_on

    @property
    def router_bias(self) -> NDArray[np.float32] | None:
        found = [held(weight).numpy() for name, weight in self._weights.items() if name.endswith(ROUTER_BIAS)]
        return found[0] if found else None

    def run(self, prompt: int, hidden: NDArray[np.float32] | None = None) -> Values:
        seen: dict[str, Array] = {}
        kernels = self._kernels

        def observe(name: str, result: Tensor) -> None:
            value = kernels.shown(result) if kernels else result
            if value.dtype in _SHOWN and name.startswith(prefix):
                seen[name] = value.numpy()

        # The MTP layer's embedding is the trunk's, on other tokens.
        prefix = self._call.path if self._call.drafts else ""
        given = None if hidden is None else torch.from_numpy(hidden)
        by_name = self._flow.inputs(self._call, prompt, given)
        caches = {name: torch_tensor(array.copy()) for name, array in self._caches[prompt].items()}
        known = by_name | caches
        if kernels is not None:
            known = kernels.place(known)
        values = {value: known[str(value.name)] for node in self._nodes for value in node.inputs
                  if value is not None and str(value.name) in known}  # fmt: skip
        with torch.inference_mode():
            for node in self._nodes:
                run_call(self._model, node, values, self._weights, observe, kernels=kernels)
        outputs = {str(value.name): values[value] for value in self._nodes[-1].outputs}
        if hidden is None:
            self._flow.keep(self._call, prompt, outputs)
        if FINAL_HIDDEN in outputs:
            observe(FINAL_HIDDEN, outputs[FINAL_HIDDEN])
        return seen


def _given(ids: Sequence[int]) -> dict[str, Tensor]:
    return sequence_inputs(ids) | {NEXT_IDS: torch.tensor([tokens_after(ids)])}
