"""A graph of an engine that is run step by step, over a latent cache that it updates in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from dsv3export.errors import BackendError, EngineError, InternalError
from dsv3export.runtime.onnxruntime_arrays import bits, graph_type, onnx_type, ort_value
from dsv3export.runtime.onnxruntime_caches import cache_layout, cache_names
from dsv3export.runtime.onnxruntime_module import ort, reason
from dsv3export.runtime.onnxruntime_open import open_graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
    from dsv3export.runtime.onnxruntime_device import Device

Outputs = tuple[str, ...]


class StepGraph:
    """One graph of an engine, opened.

    On the CPU weights are bound as they lie in their mapped files; only small ones are copied. Each step binds the
    cache's memory to the cache's input and output, so that TensorScatter writes in place. On another device the cache
    has memory of its own, one buffer a layer, and a step moves nothing but its other inputs and outputs.

    Args:
        files: The engine; `files` must have passed its checks.
        name: Which of its graphs.
        inputs, outputs: What the graph must have besides its caches; the caches' layers are numbered without gaps.
        first_layer: The number of the first of them.

    Attributes:
        cache_layout: Of the cache that `run` wants.
        vocab_size: The width of ``logits``.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        EngineError: The graph's inputs or outputs are not those of an engine.
    """

    def __init__(
        self,
        files: EngineFiles,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        threads: int | None,
        device: Device,
        first_layer: int = 0,
    ) -> None:
        self._session, self._weights = open_graph(files, files.graph(device.graph_name(name)), threads, device)
        self._device, self._first_layer = device, first_layer
        self._where = f"engine {files.path}: graph" if name == "trunk" else f"engine {files.path}: graph {name}"
        self.cache_layout, self.vocab_size = self._signature(set(inputs), set(outputs))
        self._bindings: WeakKeyDictionary[LatentCache, dict[tuple[range, Outputs], ort.IOBinding]] = WeakKeyDictionary()
        self._device_caches: WeakKeyDictionary[LatentCache, dict[str, ort.OrtValue]] = WeakKeyDictionary()

    def _signature(self, needed_inputs: set[str], needed_outputs: set[str]) -> tuple[CacheLayout, int]:
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        names = cache_names(inputs, self._first_layer)
        needed_inputs = needed_inputs | set(names)
        needed_outputs = needed_outputs | {f"{name}.updated" for name in names}
        if missing := sorted((needed_inputs - inputs.keys()) | (needed_outputs - outputs.keys())):
            raise EngineError(self._where, expected=f"inputs and outputs with {missing}", got="none")
        vocab_size = outputs["logits"].shape[-1]
        if not isinstance(vocab_size, int):
            raise EngineError(self._where, expected="one static vocabulary size", got=str(vocab_size))
        return cache_layout(inputs, self._first_layer, self._where), vocab_size

    def run(
        self, inputs: Mapping[str, NDArray[Any]], cache: LatentCache, slots: range, outputs: Outputs
    ) -> list[NDArray[Any]]:
        """A step: `outputs` by name, the cache's rows of `slots` updated in place.

        Args:
            inputs: All but the caches; ``input_ids`` [B, S] and ``start`` [B] among them.

        Raises BackendError when ONNX Runtime fails, e.g. for want of memory.
        """
        start, (batch, length) = inputs["start"], inputs["input_ids"].shape
        if batch != len(slots) or start.shape != (batch,) or int(start.max()) + length > cache.capacity:
            raise InternalError(f"a step of {(batch, length)} tokens at {start.tolist()} does not fit slots {slots}")
        binding = self._binding(cache, slots, outputs)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in outputs:
            # bound anew each time: a bound output keeps the shape of the step that filled it
            binding.bind_output(name)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError("ONNX Runtime failed in a step", got=reason(error)) from error
        return [value.numpy() for value in binding.get_outputs()[-len(outputs) :]]

    def _binding(self, cache: LatentCache, slots: range, outputs: Outputs) -> ort.IOBinding:
        """The binding with the cache rows of `slots` in it; made once per cache, range and set of outputs."""
        bindings = self._bindings.setdefault(cache, {})
        if (slots, outputs) not in bindings:
            binding = self._session.io_binding()
            for name, array in self._cache_arrays(cache, slots).items():
                if self._device.on_host:
                    value = ort_value(array)
                    binding.bind_ortvalue_input(name, value)
                    binding.bind_ortvalue_output(f"{name}.updated", value)
                else:
                    place = self._place_on_device(cache, name, array, slots)
                    binding.bind_input(name, *place)
                    binding.bind_output(f"{name}.updated", *place)
            bindings[slots, outputs] = binding
        return bindings[slots, outputs]

    def _place_on_device(
        self, cache: LatentCache, name: str, view: NDArray[Any], slots: range
    ) -> tuple[str, int, int, list[int], int]:
        """Where a layer's rows of `slots` lie on the device: its type and number, element type, shape, address.

        The numpy arrays of `cache` only say how large it is: their pages are never touched.
        """
        if cache not in self._device_caches:
            # zeros: a masked row counts 0 times, which is NaN for a NaN that lies in fresh memory
            whole = self._cache_arrays(cache, range(cache.slots))
            self._device_caches[cache] = {
                each: self._device.copy(bits(array), onnx_type(array)) for each, array in whole.items()
            }
        address = self._device_caches[cache][name].data_ptr() + slots.start * view.strides[0]
        return self._device.entry.memory, 0, onnx_type(view), list(view.shape), address

    def _cache_arrays(self, cache: LatentCache, slots: range) -> dict[str, NDArray[Any]]:
        """A cache's rows by the graph's names and in the graph's types."""
        views = cache.inputs(slots, self._first_layer)
        return {name: graph_type(array) for name, array in views}
