"""What `dsv3export inspect` finds out, as plain data that is also its JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from dsv3export.checkpoint import Checkpoint
from dsv3export.cli.onnx_nodes import count_nodes
from dsv3export.cli.ranks import ranks_facts
from dsv3export.cli.subject import Subject
from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Manifest
from dsv3export.engine.program import MTP_PROGRAM, PROGRAM, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.model_size import count_parameters
from dsv3export.recipe import CACHE_FORMATS
from dsv3export.runtime.latent_cache import CacheLayout


class Stored(Protocol):
    """What a tensor of a checkpoint and a weight of an engine have in common."""

    @property
    def dtype(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


def describe(subject: Subject, files: EngineFiles | None = None, problem: str | None = None) -> dict[str, Any]:
    """Everything known about `subject`, JSON-able.

    Args:
        subject: The model.
        files: The engine, opened; None where it cannot be used, and for other kinds.
        problem: Why the engine cannot be used.
    """
    part = None if subject.manifest is None else subject.manifest.layers
    mtp = subject.manifest is None or "mtp" in subject.manifest.graphs
    facts: dict[str, Any] = {
        "kind": subject.kind,
        "path": subject.path,
        "config": {key: value for key, value in asdict(subject.config).items() if key != "raw"},
        "layers": layers_by_kind(subject.config, part, mtp),
        "parameters": asdict(count_parameters(subject.config, part)) | ({} if mtp else {"mtp": 0}),
        "cache": cache(subject.config, subject.manifest),
    }
    if subject.checkpoint is not None:
        facts["weights"] = checkpoint_weights(subject.checkpoint)
    if subject.manifest is not None:
        facts["weights"] = engine_weights(subject.manifest)
        facts["engine"] = engine(files, subject.manifest, problem)
    return facts


def layers_by_kind(config: ModelConfig, part: Sequence[int] | None = None, mtp: bool = True) -> dict[str, list[int]]:
    """Layer kind -> layer numbers; `mtp_layer` are those after the trunk. Of a `part` of the layers, only those."""
    kinds: dict[str, list[int]] = {"dense_layer": [], "moe_layer": []}
    for layer in range(config.num_hidden_layers) if part is None else part:
        kinds[config.layer_kind(layer)].append(layer)
    kinds["mtp_layer"] = list(config.mtp_layer_ids) if part is None and mtp else []
    return {kind: layers for kind, layers in kinds.items() if layers}


def cache(config: ModelConfig, manifest: Manifest | None = None) -> dict[str, Any]:
    """Size of the latent cache of the trunk, per token of one sequence, in each format; and an engine's own format."""
    part = None if manifest is None else manifest.layers
    layers = config.num_hidden_layers if part is None else len(part)
    layouts = {format: CacheLayout.of(format, config, layers) for format in CACHE_FORMATS}
    return {
        "elements_per_token": layers * config.latent_width,
        "bytes_per_token": {format: layout.bytes_per_token for format, layout in layouts.items()},
        "format": None if manifest is None else manifest.recipe.cache,
        "max_tokens": config.max_position_embeddings,
    }


def checkpoint_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Bytes of the stored tensors by dtype, scales and MTP layers included."""
    return {
        **_totals(checkpoint.tensors.values()),
        "files": len(checkpoint.shards),
        "bytes_by_dtype": _bytes_by_dtype(checkpoint.tensors.values()),
    }


def engine_weights(manifest: Manifest) -> dict[str, Any]:
    """Bytes of the weight table: by dtype, and whether the engine stores them or refers to the checkpoint's."""
    owned = [entry for entry in manifest.weights if entry.location == "engine"]
    referenced = [entry for entry in manifest.weights if entry.location == "checkpoint"]
    return {
        **_totals(manifest.weights),
        "files": len(manifest.weight_files("engine")) + len(manifest.weight_files("checkpoint")),
        "bytes_by_dtype": _bytes_by_dtype(manifest.weights),
        "stored": _totals(owned),
        "referenced": _totals(referenced),
    }


def engine(files: EngineFiles | None, manifest: Manifest, problem: str | None) -> dict[str, Any]:
    """What engine.json says besides model and weights; nodes are counted in graphs that passed their checks."""
    return {
        "producer": manifest.producer,
        "recipe": manifest.recipe.to_json(),
        "calibration": None if manifest.calibration is None else asdict(manifest.calibration),
        "layers": manifest.layers,
        "parallel": None if manifest.parallel is None else ranks_facts(manifest.parallel),
        "backend": asdict(manifest.backend),
        "graphs": {
            name: {"file": graph.file, "bytes": graph.size, **_nodes(files, name)}
            for name, graph in manifest.graphs.items()
        },
        "program": _program(files),
        "files": {name: record.size for name, record in manifest.files.items()},
        "checkpoint": manifest.checkpoint.path,
        "problem": problem,
    }


def _program(files: EngineFiles | None) -> dict[str, Any] | None:
    """What TensorRT's engines reach to; None for other backends and engines that cannot be used."""
    if files is None or files.manifest.parallel is not None or PROGRAM not in files.manifest.graphs:
        return None
    names = [name for name in (PROGRAM, MTP_PROGRAM) if name in files.manifest.graphs]
    programs = [Program.from_json(files.graph(name)) for name in names]
    program = programs[0]
    return {
        "limits": asdict(program.limits),
        "cache": program.cache,
        "devices": program.devices,
        "kinds": {
            name: {
                "engines": dict(kind.engines),
                "calls": sum(call.kind == name for each in programs for call in each.calls),
                "weights": len(kind.weights),
            }
            for name, kind in {name: kind for each in programs for name, kind in each.kinds.items()}.items()
        },
    }


def _nodes(files: EngineFiles | None, graph: str) -> dict[str, int | None]:
    """Only ONNX files have nodes that can be counted."""
    if files is None or not files.manifest.graphs[graph].file.endswith(".onnx"):
        return {"nodes": None, "function_nodes": None}
    nodes, function_nodes = count_nodes(files.graph(graph))
    return {"nodes": nodes, "function_nodes": function_nodes}


def _totals(tensors: Iterable[Stored]) -> dict[str, int]:
    sizes = [tensor.nbytes for tensor in tensors]
    return {"tensors": len(sizes), "bytes": sum(sizes)}


def _bytes_by_dtype(tensors: Iterable[Stored]) -> dict[str, int]:
    counter: Counter[str] = Counter()
    for tensor in tensors:
        counter[tensor.dtype] += tensor.nbytes
    return dict(counter.most_common())
