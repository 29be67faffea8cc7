"""Runs an engine's graphs with ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3export.errors import BackendError
from dsv3export.runtime.drafting import no_drafts
from dsv3export.runtime.onnxruntime_arrays import graph_type, ort_value
from dsv3export.runtime.onnxruntime_device import Device, open_device
from dsv3export.runtime.onnxruntime_module import reason
from dsv3export.runtime.onnxruntime_open import open_graph, wanted_entries
from dsv3export.runtime.onnxruntime_steps import StepGraph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.kernel_choice import CpuKernels
    from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
    from dsv3export.runtime.session import Hidden, IntArray, Logits

_IDS = ("input_ids", "start", "logit_rows")


class OnnxRuntimeSession:
    """A `DraftingSession` on the CPU, or on another provider's device; see `StepGraph` for how it holds its memory.

    The graph of the MTP layer is opened by the first draft: until then it takes neither memory nor time. Weights that
    it shares with the trunk are the same mapped bytes.

    Args:
        files: The engine; `files` must have passed its checks.
        threads: Compute threads; None takes the physical cores.
        device: Where to compute; None takes the CPU, with native kernels where they can be had.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        EngineError: The graph's inputs or outputs are not those of an engine.
    """

    def __init__(self, files: EngineFiles, threads: int | None = None, device: Device | None = None) -> None:
        self._files, self._threads = files, threads
        self._device = device or open_device(files)
        self.cache_on_host = self._device.on_host
        self._trunk = StepGraph(files, "trunk", _IDS, ("logits",), threads, self._device)
        self._mtp: StepGraph | None = None
        self.cache_layout, self.vocab_size = self._trunk.cache_layout, self._trunk.vocab_size

    @property
    def cpu_kernels(self) -> CpuKernels | None:
        """Which kernels compute on the CPU; None on another device."""
        return self._device.cpu_kernels if self._device.on_host else None

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """See `Session.step`. Raises BackendError when ONNX Runtime fails, e.g. for want of memory."""
        inputs = {"input_ids": input_ids, "start": start, "logit_rows": logit_rows}
        return self._trunk.run(inputs, cache, slots, ("logits",))[0]

    def step_hidden(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> tuple[Logits, Hidden]:
        """See `DraftingSession.step_hidden`. Raises as `step`."""
        inputs = {"input_ids": input_ids, "start": start, "logit_rows": logit_rows}
        logits, hidden = self._trunk.run(inputs, cache, slots, ("logits", "final_hidden"))
        return logits, hidden

    @property
    def draft_cache_layout(self) -> CacheLayout:
        """See `DraftingSession`. Opens the MTP layer's graph; raises RequestError where the engine has none."""
        return self._drafter().cache_layout

    def draft(
        self, hidden: Hidden, next_ids: IntArray, start: IntArray, cache: LatentCache, slots: range,
        logit_rows: IntArray,
    ) -> tuple[Logits, Hidden]:  # fmt: skip
        """See `DraftingSession.draft`. Raises as `step`, and RequestError where the engine has no MTP layer."""
        inputs: dict[str, NDArray[Any]] = {"input_ids": next_ids, "start": start, "logit_rows": logit_rows}
        inputs["final_hidden"] = hidden
        logits, draft_hidden = self._drafter().run(inputs, cache, slots, ("logits", "draft_hidden"))
        return logits, draft_hidden

    def _drafter(self) -> StepGraph:
        if self._mtp is None:
            if "mtp" not in self._files.manifest.graphs:
                raise no_drafts(f"engine {self._files.path}")
            inputs, outputs = (*_IDS, "final_hidden"), ("logits", "draft_hidden")
            first_layer = self._files.config.num_hidden_layers
            self._mtp = StepGraph(self._files, "mtp", inputs, outputs, self._threads, self._device, first_layer)
        return self._mtp


class OnnxRuntimeGraph:
    """A graph that uses an engine's weights, to be run as a whole on the CPU: for looking into an engine.

    Args:
        files: The engine.
        graph: A serialized ONNX model whose external initializers are weights of the engine.
        threads: Compute threads; None takes the physical cores.
        device: The CPU, with the kernels that the graph is for; None: ONNX Runtime's own.

    Raises BackendError and EngineError as `open_graph`.
    """

    def __init__(
        self, files: EngineFiles, graph: bytes, threads: int | None = None, device: Device | None = None
    ) -> None:
        self.weight_names = tuple(entry.name for entry in wanted_entries(files, graph))
        self._session, self._weights = open_graph(files, graph, threads, device or Device("cpu"))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The values of `outputs`, which must be of types that numpy has. Raises BackendError."""
        values = {name: ort_value(graph_type(np.ascontiguousarray(array))) for name, array in inputs.items()}
        try:
            results = [value.numpy() for value in self._session.run_with_ort_values(list(outputs), values)]
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError("ONNX Runtime failed", got=reason(error)) from error
        return results
