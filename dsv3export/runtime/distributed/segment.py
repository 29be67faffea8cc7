"""One segment of a graph in ONNX Runtime: what lies between two exchanges with other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from dsv3export.errors import BackendError, EngineError
from dsv3export.runtime.onnxruntime_arrays import dtype_name, graph_type, ort_value
from dsv3export.runtime.onnxruntime_caches import CACHE
from dsv3export.runtime.onnxruntime_module import ort, reason
from dsv3export.runtime.onnxruntime_open import open_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dsv3export.engine.reader import EngineFiles
    from dsv3export.engine.segments import Run
    from dsv3export.runtime.distributed.buffers import BufferPool
    from dsv3export.runtime.latent_cache import LatentCache
    from dsv3export.runtime.onnxruntime_device import Device

UPDATED = ".updated"


class Segment:
    """A graph of a rank's engine, opened.

    Caches are bound in place and once; inputs are bound as they lie, and outputs into buffers of the pool wherever
    their sizes follow from those of the inputs.

    Args:
        files: The rank's engine.
        step: Which graph, and the values that it reads and makes.
        threads, device: See `open_graph`.

    Attributes:
        caches: The inputs that are latent caches, by name.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        EngineError: It has other inputs or outputs than the program says.
    """

    def __init__(self, files: EngineFiles, step: Run, threads: int | None, device: Device) -> None:
        graph = files.graph(device.graph_name(step.segment))
        self._session, self._weights = open_graph(files, graph, threads, device, one_arena=True)
        self._where = f"engine {files.path}: graph {step.segment}"
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        self.caches = {name: value for name, value in inputs.items() if name.startswith(CACHE)}
        updated = {f"{name}{UPDATED}" for name in self.caches}
        odd = sorted(
            (inputs.keys() ^ set(step.inputs)) | (outputs.keys() ^ set(step.outputs)) | (updated - outputs.keys())
        )
        if odd:
            raise EngineError(self._where, expected="the values of program.json", got=f"{odd} amiss")
        self._inputs = {name: list(inputs[name].shape) for name in step.inputs if name not in self.caches}
        self._outputs = {
            name: (dtype_name(outputs[name].type), list(outputs[name].shape))
            for name in step.outputs
            if name not in updated
        }
        self._bindings: WeakKeyDictionary[LatentCache, dict[range, ort.IOBinding]] = WeakKeyDictionary()

    def run(
        self, values: Mapping[str, NDArray[Any]], caches: Mapping[str, NDArray[Any]], cache: LatentCache, slots: range,
        pool: BufferPool,
    ) -> dict[str, NDArray[Any]]:  # fmt: skip
        """Its outputs; the rows of `slots` in the cache are updated in place.

        Args:
            values: At least its inputs.
            caches: Views of the cache's rows, by the names of the graph.
            cache, slots: What they are views of.
            pool: Where outputs are taken from.

        Raises BackendError when ONNX Runtime fails, e.g. for want of memory.
        """
        binding = self._binding(caches, cache, slots)
        sizes: dict[str, int] = {}
        for name, shape in self._inputs.items():
            array = values[name]
            sizes |= {dim: size for dim, size in zip(shape, array.shape, strict=True) if isinstance(dim, str)}
            binding.bind_ortvalue_input(name, ort_value(graph_type(np.ascontiguousarray(array))))
        buffers: dict[str, NDArray[Any]] = {}
        for name, (dtype, dims) in self._outputs.items():
            shape = [sizes.get(dim, 0) if isinstance(dim, str) else dim for dim in dims]
            if 0 in shape:  # of a size that only ONNX Runtime knows, or empty
                binding.bind_output(name)
            else:
                buffers[name] = pool.take(shape, dtype)
                binding.bind_ortvalue_output(name, ort_value(buffers[name]))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError(f"{self._where}: ONNX Runtime failed", got=reason(error)) from error
        # Caches were bound first, and a name that is bound again keeps its place.
        made = binding.get_outputs()[-len(self._outputs) :]
        return {name: buffers.get(name, value.numpy()) for name, value in zip(self._outputs, made, strict=True)}

    def _binding(self, caches: Mapping[str, NDArray[Any]], cache: LatentCache, slots: range) -> ort.IOBinding:
        """The binding with the cache rows of `slots` in it; made once per cache and range."""
        bindings = self._bindings.setdefault(cache, {})
        if slots not in bindings:
            binding = bindings[slots] = self._session.io_binding()
            for name in self.caches:
                value = ort_value(graph_type(caches[name]))
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(f"{name}{UPDATED}", value)
        return bindings[slots]
