"""Opens a graph of an engine in ONNX Runtime: its weights are checked against the table and bound as they lie."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import BackendError, EngineError
from dsv3export.runtime import cpu_kernels
from dsv3export.runtime.huge_pages import anonymous_ranges, collapse_new
from dsv3export.runtime.onnx_initializers import external_initializers
from dsv3export.runtime.onnxruntime_arrays import ONNX_TYPES, ort_value
from dsv3export.runtime.onnxruntime_module import ort, reason
from dsv3export.runtime.protobuf import MalformedMessageError
from dsv3export.runtime.threads import default_threads

if TYPE_CHECKING:
    from dsv3export.engine.manifest import WeightEntry
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.onnxruntime_device import Device

_SMALL = 1 << 20
_FATAL_ONLY = 4  # errors come as exceptions, printing them too would say them twice


def open_graph(
    files: EngineFiles, graph: bytes, threads: int | None, device: Device, one_arena: bool = False
) -> tuple[ort.InferenceSession, list[ort.OrtValue]]:
    """A session, and the weights, which it does not own and which must live as long as it does.

    Args:
        graph: A serialized ONNX model whose external initializers are weights of the engine.
        threads: Compute threads; None takes the physical cores.
        one_arena: Whether its values lie in memory that all such sessions of the process have in common. For sessions
            that run one after the other; what they took is kept until the process ends.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
        EngineError: The graph wants weights that the engine does not have.
    """
    count = threads or default_threads()
    options = _options(count, device)
    if one_arena and device.on_host:
        _share_arena(options)
    if device.cpu_kernels == "native":
        cpu_kernels.register(options, count, device.invariant)
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


def _share_arena(options: ort.SessionOptions) -> None:
    """Each session has an arena of its own otherwise, as large as the longest prompt that it has seen."""
    _register_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")


@cache
def _register_arena() -> None:
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))


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
    for entry in wanted_entries(files, graph):
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


def wanted_entries(files: EngineFiles, graph: bytes) -> list[WeightEntry]:
    """The weights that the graph wants. Raises EngineError unless the table has them all, of its dtypes and shapes."""
    try:
        wanted = external_initializers(graph)
    except MalformedMessageError as error:
        raise EngineError(f"engine {files.path}: graph", expected="an ONNX model", got=str(error)) from None
    for name, tensor in wanted.items():
        expected = f"type {tensor.data_type} {list(tensor.shape)}, as in the graph"
        entry = files.entries.get(name)
        got = f"type {ONNX_TYPES[entry.dtype]} {list(entry.shape)}" if entry else "none in engine.json"
        if entry is None or (tensor.data_type, tensor.shape) != (ONNX_TYPES[entry.dtype], entry.shape):
            raise EngineError(f"engine {files.path}: weight {name!r}", expected=expected, got=got, fix=REBUILD)
    return [files.entries[name] for name in wanted]
