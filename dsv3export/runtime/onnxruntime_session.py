"""Runs an engine's graph with ONNX Runtime. The only module that imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import BackendError, EngineError, InternalError
from dsv3export.runtime.onnx_initializers import MalformedGraphError, external_initializers
from dsv3export.runtime.threads import default_threads

try:
    import onnxruntime as ort
except ImportError as error:
    raise BackendError(
        "onnxruntime", expected="the package", got=str(error), fix="Install it: pip install 'dsv3export[cpu]'."
    ) from error

if TYPE_CHECKING:
    from dsv3export.engine.manifest import WeightEntry
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.latent_cache import LatentCache
    from dsv3export.runtime.session import IntArray, Logits

# TensorProto.DataType of the safetensors dtypes
_ONNX_TYPES = {
    "F32": 1, "U8": 2, "I8": 3, "I16": 5, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "F64": 11, "BF16": 16,
    "F8_E4M3": 17,
}  # fmt: skip
_NOT_IN_NUMPY = ("BF16", "F8_E4M3")
_SMALL = 1 << 20
_FATAL_ONLY = 4  # errors come as exceptions, printing them too would say them twice


class OnnxRuntimeSession:
    """A `Session` on the CPU.

    Weights are bound as they lie in their mapped files; only small ones are copied. Each step binds the cache's memory
    to the cache's input and output, so that TensorScatter writes in place.

    Args:
        files: The engine; `files` must have passed its checks.
        threads: Compute threads; None takes the physical cores.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        EngineError: The graph's inputs or outputs are not those of an engine.
    """

    def __init__(self, files: EngineFiles, threads: int | None = None) -> None:
        graph = files.graph("trunk")
        options = _options(threads or default_threads())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(files.path))
        # ONNX Runtime does not own the weights' memory: the values live as long as the session
        self._weights = _bind_weights(files, graph, options)
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise BackendError(
                f"engine {files.path}: ONNX Runtime {ort.__version__} refuses the graph", got=_tail(error)
            ) from error
        # packed weights were copied; the pages of those that were not come back on first use
        files.release_pages()
        self._path = files.path
        self._read_signature()
        self._bindings: WeakKeyDictionary[LatentCache, dict[range, ort.IOBinding]] = WeakKeyDictionary()

    def _read_signature(self) -> None:
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        caches = [name for name in inputs if name.startswith("latent_cache.")]
        self._cache_names = [f"latent_cache.{i}" for i in range(len(caches))]
        needed_inputs = {"input_ids", "start", "logit_rows", *self._cache_names}
        needed_outputs = {"logits", *(f"{name}.updated" for name in self._cache_names)}
        if missing := sorted((needed_inputs - inputs.keys()) | (needed_outputs - outputs.keys())):
            raise EngineError(f"engine {self._path}: graph", expected=f"inputs and outputs with {missing}", got="none")
        widths = {inputs[name][-1] for name in self._cache_names}
        vocab_size = outputs["logits"][-1]
        if len(widths) != 1 or not isinstance(width := widths.pop(), int) or not isinstance(vocab_size, int):
            raise EngineError(f"engine {self._path}: graph", expected="one static cache width and vocabulary size")
        self.cache_layers, self.cache_width, self.vocab_size = len(caches), width, vocab_size

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
            raise BackendError("ONNX Runtime failed in a step", got=_tail(error)) from error
        logits: Logits = binding.get_outputs()[-1].numpy()
        return logits

    def _binding(self, cache: LatentCache, slots: range) -> ort.IOBinding:
        """The binding with the cache rows of `slots` in it; made once per cache and range."""
        bindings = self._bindings.setdefault(cache, {})
        if slots not in bindings:
            binding = self._session.io_binding()
            for layer, name in enumerate(self._cache_names):
                value = ort.OrtValue.ortvalue_from_numpy(cache.view(layer, slots))
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(f"{name}.updated", value)
            bindings[slots] = binding
        return bindings[slots]


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # threads that spin between steps take the cores from others and gain little
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _bind_weights(files: EngineFiles, graph: bytes, options: ort.SessionOptions) -> list[ort.OrtValue]:
    """Offers every weight to the session that `options` will make; returns what has to stay alive with it.

    Large weights go by `add_initializer`, which copies nothing; but constant folding does not see them and reads the
    file that the graph names (right for the engine's own weights; for those of the checkpoint the load fails, as
    BY_REFERENCE is shorter than any large weight). Small ones go by `add_external_initializers`, which copies and
    which every optimizer sees.
    """
    kept, small_names, small_values = [], [], []
    for entry in _wanted_entries(files, graph):
        # what a checkpoint stores unaligned has to be copied
        array = np.require(files.weight(entry.name), requirements=["A"])
        if entry.dtype in _NOT_IN_NUMPY:
            raw = array.view(f"u{array.dtype.itemsize}")
            value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, _ONNX_TYPES[entry.dtype])
        else:
            value = ort.OrtValue.ortvalue_from_numpy(array)
        kept.append(value)
        if entry.nbytes > _SMALL:
            options.add_initializer(entry.name, value)
        else:
            small_names.append(entry.name)
            small_values.append(value)
    options.add_external_initializers(small_names, small_values)
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
        got = f"type {_ONNX_TYPES[entry.dtype]} {list(entry.shape)}" if entry else "none in engine.json"
        if entry is None or (tensor.data_type, tensor.shape) != (_ONNX_TYPES[entry.dtype], entry.shape):
            raise EngineError(f"engine {files.path}: weight {name!r}", expected=expected, got=got, fix=REBUILD)
    return [files.entries[name] for name in wanted]


def _tail(error: Exception) -> str:
    """The end of ONNX Runtime's message, in one line: it starts with a C++ signature and ends with the reason."""
    return " ".join(str(error).split())[-300:]
