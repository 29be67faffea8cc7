"""Runs an engine's graph with ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import BackendError, EngineError, InternalError
from dsv3export.runtime.huge_pages import anonymous_ranges, collapse_new
from dsv3export.runtime.latent_cache import CacheLayout
from dsv3export.runtime.onnx_initializers import MalformedGraphError, external_initializers
from dsv3export.runtime.onnxruntime_arrays import ONNX_TYPES, bits, graph_type, onnx_type, ort_value
from dsv3export.runtime.onnxruntime_device import Device
from dsv3export.runtime.onnxruntime_module import ort, reason
from dsv3export.runtime.threads import default_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dsv3export.engine.manifest import WeightEntry
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.latent_cache import LatentCache
    from dsv3export.runtime.session import IntArray, Logits

# Types of a cache, and of what lies beside it, in the graph -> what it holds. Of an fp8 cache the graph sees the bits:
# ONNX Runtime writes no float8.
_CACHE_DTYPES = {
    ("tensor(float)",): "F32",
    ("tensor(bfloat16)",): "BF16",
    ("tensor(float16)",): "F16",
    ("tensor(int8)", "tensor(bfloat16)"): "F8_E4M3",
}
_SMALL = 1 << 20
_FATAL_ONLY = 4  # errors come as exceptions, printing them too would say them twice


class OnnxRuntimeSession:
    """A `Session` on the CPU, or on another provider's device.

    On the CPU weights are bound as they lie in their mapped files; only small ones are copied. Each step binds the
    cache's memory to the cache's input and output, so that TensorScatter writes in place. On another device the cache
    has memory of its own, one buffer a layer, and a step moves nothing but token ids and logits.

    Args:
        files: The engine; `files` must have passed its checks.
        threads: Compute threads; None takes the physical cores.
        device: Where to compute; None takes the CPU.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        EngineError: The graph's inputs or outputs are not those of an engine.
    """

    def __init__(self, files: EngineFiles, threads: int | None = None, device: Device | None = None) -> None:
        self._device = device or Device("cpu")
        self.cache_on_host = self._device.on_host
        self._session, self._weights = _open_graph(files, files.graph("trunk"), threads, self._device)
        self._path = files.path
        self._read_signature()
        self._bindings: WeakKeyDictionary[LatentCache, dict[range, ort.IOBinding]] = WeakKeyDictionary()
        self._device_caches: WeakKeyDictionary[LatentCache, dict[str, ort.OrtValue]] = WeakKeyDictionary()

    def _read_signature(self) -> None:
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        caches = [name for name in inputs if name.startswith("latent_cache.")]
        parts = ("", ".side") if any(name.endswith(".side") for name in caches) else ("",)
        layers = len(caches) // len(parts)
        names = [f"latent_cache.{i}{part}" for i in range(layers) for part in parts]
        needed_inputs = {"input_ids", "start", "logit_rows", *names}
        needed_outputs = {"logits", *(f"{name}.updated" for name in names)}
        if missing := sorted((needed_inputs - inputs.keys()) | (needed_outputs - outputs.keys())):
            raise EngineError(f"engine {self._path}: graph", expected=f"inputs and outputs with {missing}", got="none")
        rows = {tuple((inputs[f"latent_cache.{i}{p}"].type, inputs[f"latent_cache.{i}{p}"].shape[-1]) for p in parts)
                for i in range(layers)}  # fmt: skip
        vocab_size = outputs["logits"].shape[-1]
        sizes = [width for row in rows for _, width in row] + [vocab_size]
        if len(rows) != 1 or not all(isinstance(size, int) for size in sizes):
            raise EngineError(f"engine {self._path}: graph", expected="one static cache width and vocabulary size")
        types = tuple(kind for kind, _ in next(iter(rows)))
        if types not in _CACHE_DTYPES:
            expected = "a cache of float, bfloat16, float16, or int8 with bfloat16 beside it"
            raise EngineError(f"engine {self._path}: graph", expected=expected, got=" and ".join(types))
        self.cache_layout = CacheLayout(layers, sizes[0], _CACHE_DTYPES[types], sizes[1] if len(parts) > 1 else 0)
        self.vocab_size = vocab_size

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """See `Session.step`. Raises BackendError when ONNX Runtime fails, e.g. for want of memory."""
        batch, length = input_ids.shape
        if batch != len(slots) or start.shape != (batch,) or int(start.max()) + length > cache.capacity:
            raise InternalError(f"a step of {input_ids.shape} tokens at {start.tolist()} does not fit slots {slots}")
        binding = self._binding(cache, slots)
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids))
        binding.bind_cpu_input("start", np.ascontiguousarray(start))
        binding.bind_cpu_input("logit_rows", np.ascontiguousarray(logit_rows))
        # bound anew each time: a bound output keeps the shape of the step that filled it
        binding.bind_output("logits")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise BackendError("ONNX Runtime failed in a step", got=reason(error)) from error
        logits: Logits = binding.get_outputs()[-1].numpy()
        return logits

    def _binding(self, cache: LatentCache, slots: range) -> ort.IOBinding:
        """The binding with the cache rows of `slots` in it; made once per cache and range."""
        bindings = self._bindings.setdefault(cache, {})
        if slots not in bindings:
            binding = self._session.io_binding()
            for name, array in _cache_arrays(cache, slots).items():
                if self._device.on_host:
                    value = ort_value(array)
                    binding.bind_ortvalue_input(name, value)
                    binding.bind_ortvalue_output(f"{name}.updated", value)
                else:
                    place = self._place_on_device(cache, name, array, slots)
                    binding.bind_input(name, *place)
                    binding.bind_output(f"{name}.updated", *place)
            bindings[slots] = binding
        return bindings[slots]

    def _place_on_device(
        self, cache: LatentCache, name: str, view: NDArray[Any], slots: range
    ) -> tuple[str, int, int, list[int], int]:
        """Where a layer's rows of `slots` lie on the device: its type and number, element type, shape, address.

        The numpy arrays of `cache` only say how large it is: their pages are never touched.
        """
        if cache not in self._device_caches:
            # zeros: a masked row counts 0 times, which is NaN for a NaN that lies in fresh memory
            whole = _cache_arrays(cache, range(cache.slots))
            self._device_caches[cache] = {
                each: self._device.copy(bits(array), onnx_type(array)) for each, array in whole.items()
            }
        address = self._device_caches[cache][name].data_ptr() + slots.start * view.strides[0]
        return self._device.entry.memory, 0, onnx_type(view), list(view.shape), address


def _cache_arrays(cache: LatentCache, slots: range) -> dict[str, NDArray[Any]]:
    """A cache's rows by the graph's names and in the graph's types."""
    views = cache.inputs(slots)
    return {name: graph_type(array) for name, array in views}


class OnnxRuntimeGraph:
    """A graph that uses an engine's weights, to be run as a whole on the CPU: for looking into an engine.

    Args:
        files: The engine.
        graph: A serialized ONNX model whose external initializers are weights of the engine.
        threads: Compute threads; None takes the physical cores.

    Raises BackendError and EngineError as `OnnxRuntimeSession`.
    """

    def __init__(self, files: EngineFiles, graph: bytes, threads: int | None = None) -> None:
        self.weight_names = tuple(entry.name for entry in _wanted_entries(files, graph))
        self._session, self._weights = _open_graph(files, graph, threads, Device("cpu"))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The values of `outputs`, which must be of types that numpy has. Raises BackendError."""
        values = {name: ort_value(graph_type(np.ascontiguousarray(array))) for name, array in inputs.items()}
        try:
            results = [value.numpy() for value in self._session.run_with_ort_values(list(outputs), values)]
        except Exception as error:  # as above
            raise BackendError("ONNX Runtime failed", got=reason(error)) from error
        return results


def _open_graph(
    files: EngineFiles, graph: bytes, threads: int | None, device: Device
) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """A session, and the weights, which it does not own and which must live as long as it does."""
    options = _options(threads or default_threads(), device)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(files.path))
    weights = _bind_weights(files, graph, options, device)
    memory_before = anonymous_ranges()
    try:
        # without its fallback, which would print to stdout and go on with the CPU
        session = ort.InferenceSession(graph, options, providers=device.session_providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise BackendError(
            f"engine {files.path}: ONNX Runtime {ort.__version__} refuses the graph", got=reason(error)
        ) from error
    device.check_placement(session, f"engine {files.path}")
    # packed weights were copied; the pages of those that were not come back on first use
    files.release_pages()
    collapse_new(memory_before)
    return session, weights


def _options(threads: int, device: Device) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # A decode step has hundreds of short parallel loops: to wake threads for each costs a third of its time. Between
    # steps they sleep.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if not device.on_host:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _bind_weights(files: EngineFiles, graph: bytes, options: ort.SessionOptions, device: Device) -> list[ort.OrtValue]:
    """Offers the weights to the session that `options` will make; returns what has to stay alive with it.

    Large weights go by `add_initializer`, which copies nothing; but constant folding does not see them and reads the
    file that the graph names (right for the engine's own weights; for those of the checkpoint the load fails, as
    BY_REFERENCE is shorter than any large weight). Small ones go by `add_external_initializers`, which copies and
    which every optimizer sees.

    On another device nothing of the above spares a copy. ONNX Runtime reads the engine's own weights from their files
    by itself, and is offered those of the checkpoint only.
    """
    kept, copied_names, copied_values = [], [], []
    for entry in _wanted_entries(files, graph):
        if not device.on_host and entry.location == "engine":
            continue
        # what a checkpoint stores unaligned has to be copied
        array = np.require(files.weight(entry.name), requirements=["A"])
        value = ort_value(array)
        kept.append(value)
        if entry.nbytes > _SMALL and device.on_host:
            options.add_initializer(entry.name, value)
        else:
            copied_names.append(entry.name)
            copied_values.append(value)
    options.add_external_initializers(copied_names, copied_values)
    return kept


def _wanted_entries(files: EngineFiles, graph: bytes) -> list[WeightEntry]:
    """The weights that the graph wants. Raises EngineError unless the table has them all, of its dtypes and shapes."""
    try:
        wanted = external_initializers(graph)
    except MalformedGraphError as error:
        raise EngineError(f"engine {files.path}: graph", expected="an ONNX model", got=str(error)) from None
    for name, tensor in wanted.items():
        expected = f"type {tensor.data_type} {list(tensor.shape)}, as in the graph"
        entry = files.entries.get(name)
        got = f"type {ONNX_TYPES[entry.dtype]} {list(entry.shape)}" if entry else "none in engine.json"
        if entry is None or (tensor.data_type, tensor.shape) != (ONNX_TYPES[entry.dtype], entry.shape):
            raise EngineError(f"engine {files.path}: weight {name!r}", expected=expected, got=got, fix=REBUILD)
    return [files.entries[name] for name in wanted]
