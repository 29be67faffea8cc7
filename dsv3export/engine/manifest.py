"""engine.json: what an engine consists of. Plain dataclasses, strict parsing, deterministic text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from dsv3export.engine.parallel import Parallel, parse_parallel
from dsv3export.engine.typed_json import JsonValue, read_json
from dsv3export.errors import EngineError
from dsv3export.recipe import Recipe, RecipeError

FORMAT = "dsv3export-engine"
VERSION = 2
MANIFEST_NAME = "engine.json"
_MAX_BYTES = 512 << 20  # the 671B shape with every expert in the checkpoint has 3 MB
_MAX_RANK = 8
_KEYS = (
    "format", "version", "producer", "model", "layers", "recipe", "calibration", "backend", "graphs", "checkpoint",
    "weights", "files",
)  # fmt: skip

Location = Literal["engine", "checkpoint"]
# Where ONNX Runtime computes: its execution providers.
Provider = Literal["cpu", "cuda", "migraphx", "cann"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)
Compute = Literal["fp32", "bf16", "f16"]
COMPUTE: tuple[Compute, ...] = get_args(Compute)


@dataclass(frozen=True)
class BackendRecord:
    """What the graph was made for.

    Attributes:
        name: The backend.
        built_with: Its version.
        opset: The version of the ai.onnx domain.
        providers: Of ONNX Runtime: the providers that have kernels for the whole graph; it was built for the first.
        compute: Of ONNX Runtime: what products with integer or fp8 weights are computed in; other weights say so by
            their own type. Of TensorRT: what all activations are computed in.
    """

    name: str
    built_with: str
    opset: int
    providers: tuple[Provider, ...] = ("cpu",)
    compute: Compute = "fp32"


@dataclass(frozen=True)
class GraphRecord:
    """A graph file of the engine: relative name, digest, size in bytes."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class FileRecord:
    """A weights or tokenizer file of the engine; an unchanged size and mtime spare hashing it again."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """A checkpoint file as it was at build time, known by its size and the digest of its header."""

    size: int
    header_sha256: str


@dataclass(frozen=True)
class CheckpointRecord:
    """Where the engine came from.

    `mtimes_ns` has an entry for each checkpoint file that the engine refers to.
    """

    path: str
    config_sha256: str
    files: dict[str, ShardRecord]
    mtimes_ns: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_fingerprint(cls, path: Path, fingerprint: dict[str, Any]) -> CheckpointRecord:
        """From `Checkpoint.fingerprint()`."""
        files = {name: ShardRecord(**record) for name, record in fingerprint["files"].items()}
        return cls(str(path.resolve()), fingerprint["config_sha256"], files)


@dataclass(frozen=True)
class CalibrationRecord:
    """The text that weights were fitted to: of `text_sha256`, so many sequences of so many tokens, BOS not counted."""

    text_sha256: str
    sequences: int
    tokens_per_sequence: int


class Piece(NamedTuple):
    """A range of a file's bytes, or the columns of a matrix in it: ranges of one length at even distances.

    Attributes:
        file: Relative to the engine or the checkpoint.
        offset: Where the first range begins, counted from the file's start.
        nbytes: Of all ranges together.
        run: Of each range; 0 where there is one only.
        stride: From the beginning of a range to that of the next.
    """

    file: str
    offset: int
    nbytes: int
    run: int = 0
    stride: int = 0

    @property
    def end(self) -> int:
        """Where the byte behind it lies in the file."""
        if not self.run:
            return self.offset + self.nbytes
        return self.offset + (self.nbytes // self.run - 1) * self.stride + self.run

    def ranges(self) -> list[int]:
        """The numbers that the weight table has for it."""
        return [*self[1:]] if self.run else [self.offset, self.nbytes]


@dataclass(frozen=True)
class WeightEntry:
    """Where the bytes of one graph initializer lie, and what they were made from.

    `dtype` is a safetensors dtype name. The array's bytes, in row-major order, are those of `pieces` one after the
    other: one for a plain tensor, E for a bank of experts that lie in the checkpoint; a piece may also be a part of a
    stored tensor. `location` says whose files they are in. `sources` are checkpoint tensors, runs of numbered names
    as in ``experts.{0..255}.up_proj.weight``; `transform` says what was done.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: Location
    pieces: tuple[Piece, ...]
    sources: tuple[str, ...]
    transform: str

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)

    def to_json(self) -> dict[str, Any]:
        """A row of the weight table; pieces that follow each other in one file are listed together."""
        files = groupby(self.pieces, key=lambda piece: piece.file)
        pieces = [{"file": file, "ranges": [piece.ranges() for piece in group]} for file, group in files]
        return {**vars(self), "pieces": pieces}


@dataclass(frozen=True)
class Manifest:
    """The content of engine.json.

    `files` is filled in by the writer. `layers` are the decoder layers of an engine of a part of the model, in order;
    None for a whole one. `calibration` is None where no weight was fitted to a text. `parallel` is None for an engine
    that one process runs.
    """

    producer: str
    model: dict[str, Any]
    recipe: Recipe
    backend: BackendRecord
    graphs: dict[str, GraphRecord]
    checkpoint: CheckpointRecord
    weights: tuple[WeightEntry, ...]
    files: dict[str, FileRecord] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    calibration: CalibrationRecord | None = None
    parallel: Parallel | None = None

    def weight_files(self, location: Location) -> set[str]:
        """The files, of the engine or of the checkpoint, that weights lie in."""
        return {piece.file for entry in self.weights if entry.location == location for piece in entry.pieces}

    def to_json(self) -> str:
        """Deterministic: keys of tables sorted, weights in the order of the build, one weight a line."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "producer": self.producer,
            "model": self.model,
            "layers": self.layers,
            "recipe": self.recipe.to_json(),
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "backend": asdict(self.backend),
            "graphs": _records(self.graphs),
            "checkpoint": {
                "path": self.checkpoint.path,
                "fingerprint": {
                    "config_sha256": self.checkpoint.config_sha256,
                    "files": _records(self.checkpoint.files),
                },
                "mtimes_ns": self.checkpoint.mtimes_ns,
            },
            "files": _records(self.files),
            **({} if self.parallel is None else {"parallel": self.parallel.to_json()}),
        }
        weights = ",\n".join("  " + json.dumps(entry.to_json(), allow_nan=False) for entry in self.weights)
        members = [f'"{key}": {json.dumps(value, sort_keys=True, allow_nan=False)}' for key, value in head.items()]
        return "{\n" + ",\n".join([*members, f'"weights": [\n{weights}\n]']) + "\n}\n"

    @classmethod
    def read(cls, engine: Path) -> Manifest:
        """Reads `engine`/engine.json. Raises EngineError for anything that is not a version-2 manifest."""
        return cls.from_json(read_json(engine / MANIFEST_NAME, _MAX_BYTES))

    @classmethod
    def from_json(cls, document: JsonValue) -> Manifest:
        """Raises EngineError. Checks types and ranges; the files themselves are checked by the reader."""
        _check_version(document)
        cut = "parallel" in document.mapping()
        fields = document.fields(*_KEYS, *(["parallel"] if cut else []))
        fields["model"].mapping()
        return cls(
            producer=fields["producer"].text(),
            model=cast("dict[str, Any]", fields["model"].value),
            recipe=_recipe(fields["recipe"]),
            backend=_backend(fields["backend"]),
            graphs={name: _graph(graph) for name, graph in fields["graphs"].mapping().items()},
            checkpoint=_checkpoint(fields["checkpoint"]),
            weights=tuple(_weight(entry) for entry in fields["weights"].array()),
            files={name: _file(record) for name, record in fields["files"].mapping().items()},
            layers=None if fields["layers"].value is None else _layers(fields["layers"]),
            calibration=None if fields["calibration"].value is None else _calibration(fields["calibration"]),
            parallel=parse_parallel(fields["parallel"]) if cut else None,
        )


def _records(table: Mapping[str, GraphRecord] | Mapping[str, FileRecord] | Mapping[str, ShardRecord]) -> dict[str, Any]:
    return {name: asdict(record) for name, record in table.items()}


def _backend(document: JsonValue) -> BackendRecord:
    fields = document.fields(*BackendRecord.__dataclass_fields__)
    providers = tuple(cast("Provider", provider.choice(*PROVIDERS)) for provider in fields["providers"].array())
    if not providers and fields["name"].text() == "onnxruntime":
        fields["providers"].fail(f"one or more of {', '.join(PROVIDERS)}")
    return BackendRecord(
        name=fields["name"].text(),
        built_with=fields["built_with"].text(),
        opset=fields["opset"].integer(minimum=1),
        providers=providers,
        compute=cast("Compute", fields["compute"].choice(*COMPUTE)),
    )


def _recipe(document: JsonValue) -> Recipe:
    try:
        return Recipe.from_json(document.value, document.where)
    except RecipeError as bad:
        raise EngineError(str(bad)) from None


def _calibration(document: JsonValue) -> CalibrationRecord:
    fields = document.fields(*CalibrationRecord.__dataclass_fields__)
    return CalibrationRecord(
        fields["text_sha256"].sha256(),
        fields["sequences"].integer(minimum=1),
        fields["tokens_per_sequence"].integer(minimum=1),
    )


def _layers(document: JsonValue) -> tuple[int, ...]:
    layers = document.integers()
    if not layers or list(layers) != sorted(set(layers)):
        document.fail("null, or the numbers of layers in ascending order")
    return layers


def _check_version(document: JsonValue) -> None:
    members = document.mapping()
    if "format" not in members or members["format"].value != FORMAT:
        raise EngineError(document.where, expected=f'"format": "{FORMAT}"', got=_got(members, "format"))
    if "version" not in members or members["version"].value != VERSION or members["version"].value is True:
        raise EngineError(
            document.where,
            expected=f"engine format version {VERSION}",
            got=_got(members, "version"),
            fix="Rebuild the engine with this dsv3export, or run it with the one that built it.",
        )


def _got(members: dict[str, JsonValue], key: str) -> str:
    return json.dumps(members[key].value)[:60] if key in members else "none"


def _graph(document: JsonValue) -> GraphRecord:
    fields = document.fields("file", "sha256", "size")
    return GraphRecord(fields["file"].text(), fields["sha256"].sha256(), fields["size"].integer())


def _file(document: JsonValue) -> FileRecord:
    fields = document.fields("size", "mtime_ns", "sha256")
    return FileRecord(fields["size"].integer(), fields["mtime_ns"].integer(minimum=-(2**63)), fields["sha256"].sha256())


def _checkpoint(document: JsonValue) -> CheckpointRecord:
    fields = document.fields("path", "fingerprint", "mtimes_ns")
    fingerprint = fields["fingerprint"].fields("config_sha256", "files")
    files = {}
    for name, record in fingerprint["files"].mapping().items():
        shard = record.fields("size", "header_sha256")
        files[name] = ShardRecord(shard["size"].integer(), shard["header_sha256"].sha256())
    mtimes = {name: value.integer(minimum=-(2**63)) for name, value in fields["mtimes_ns"].mapping().items()}
    return CheckpointRecord(fields["path"].text(), fingerprint["config_sha256"].sha256(), files, mtimes)


def _weight(document: JsonValue) -> WeightEntry:
    fields = document.fields(*WeightEntry.__dataclass_fields__)
    shape = fields["shape"].integers()
    if len(shape) > _MAX_RANK:
        fields["shape"].fail(f"at most {_MAX_RANK} dimensions")
    return WeightEntry(
        name=fields["name"].text(),
        dtype=fields["dtype"].text(),
        shape=shape,
        location=cast("Location", fields["location"].choice("engine", "checkpoint")),
        pieces=tuple(piece for run in fields["pieces"].array() for piece in _pieces(run)),
        sources=tuple(source.text() for source in fields["sources"].array()),
        transform=fields["transform"].text(),
    )


def _pieces(document: JsonValue) -> Iterator[Piece]:
    """The pieces of one file."""
    fields = document.fields("file", "ranges")
    file = fields["file"].text()
    for byte_range in fields["ranges"].array():
        numbers = byte_range.integers()
        if len(numbers) == 4:
            _, nbytes, run, stride = numbers
            if not 0 < run <= stride or not nbytes or nbytes % run:
                byte_range.fail("offset and length in bytes, and a length of each range that divides it and a stride")
        elif len(numbers) != 2:
            byte_range.fail("offset and length in bytes, or these and a length of each range and a stride")
        yield Piece(file, *numbers)
