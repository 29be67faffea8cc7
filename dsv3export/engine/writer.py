"""Writes an engine directory: all or nothing, and where it was killed it goes on."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from dsv3export.checkpoint import Checkpoint, TensorInfo
from dsv3export.dtypes import itemsize
from dsv3export.engine.file_writer import write_file
from dsv3export.engine.journal import Journal, journal_key
from dsv3export.engine.manifest import MANIFEST_NAME, FileRecord, GraphRecord, Location, Manifest, Piece, WeightEntry
from dsv3export.engine.numbered_names import shortened
from dsv3export.engine.parallel import RANK_PREFIX
from dsv3export.engine.plan import PlannedWeight, Region, Shard, layout_shards
from dsv3export.engine.resources import require_free_disk, resource_errors
from dsv3export.engine.staging import Staging
from dsv3export.engine.tokenizer_files import read_carried_files
from dsv3export.engine.weight_files import WeightFiles
from dsv3export.engine.work import ONE_AT_A_TIME, Limits, Stage
from dsv3export.errors import EngineError, InternalError
from dsv3export.progress import NoProgress, Progress

BY_REFERENCE = "weights/BY_REFERENCE"
_BY_REFERENCE_TEXT = (
    b"The graph names this file as the location of its weights. The weights themselves are bound when the engine is\n"
    b"loaded: the table in engine.json says which file of the engine or of the checkpoint holds each of them.\n"
)


class EngineWriter:
    """Builds an engine in `<out>.partial` and renames it to `out` in `finish`; an error leaves nothing behind.

    What is stopped from outside (Ctrl-C, SIGTERM, a crash of the machine) leaves the weights that are finished, if the
    build has a key; a build with the same key then goes on with them.

    Args:
        out: The engine directory to be. With `force` an engine that is there already is replaced.
        checkpoint: What the engine is built from; needed for weights that stay there. `out` may neither lie in its
            folder nor hold it.
        key: Stands for everything that determines the bytes of the weights; "" = never go on with a build.

    Attributes:
        resumed_bytes: How many bytes of weights were there from before; known after `write_weights`.

    Raises:
        EngineError: The target may not be written, or another build is writing it.
        ResourceError: The disk is full or read-only, a file grows too large, ...
    """

    def __init__(self, out: Path, force: bool = False, checkpoint: Checkpoint | None = None, key: str = "") -> None:
        self._out, self._force, self._key = out, force, key
        self._checkpoint = checkpoint
        self._staging: Staging | None = None
        self._files: dict[str, FileRecord] = {}
        self.resumed_bytes = 0

    def __enter__(self) -> EngineWriter:
        if self._checkpoint is not None:
            _check_apart(self._out, self._checkpoint.path)
        self._staging = Staging(self._out, self._force, self._key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staging, self._staging = self._staging, None
        if staging is None:
            return
        stopped = None if isinstance(error, Exception) else error
        if stopped is not None and self._key and journal_key(staging.path) == self._key:
            staging.keep()
            stopped.args = (f"run the same command again to go on with {staging.path}",)
        else:
            staging.discard()

    def write_file(self, name: str, data: bytes) -> GraphRecord:
        """Writes a whole file; `name` is relative to the engine. Returns its record for `Manifest.graphs`."""
        record = self._write(name, [data])
        return GraphRecord(name, record.sha256, record.size)

    def write_weights(
        self,
        plan: Sequence[PlannedWeight],
        stages: Sequence[Stage],
        limits: Limits = ONE_AT_A_TIME,
        progress: Progress | None = None,
    ) -> list[WeightEntry]:
        """Writes the weights that are not references.

        Args:
            plan: All weights of the engine. May be called once.
            stages: Make each of those weights, part by part; stage by stage.
            limits: How much is made at once; the result does not depend on it.

        Returns:
            The weight table, in the order of `plan`.
        """
        progress, folder = progress or NoProgress(), self._open_staging.path
        shards = layout_shards([weight for weight in plan if not weight.reference])
        _check_complete(shards, stages)
        require_free_disk(folder, sum(shard.size for shard in shards) - _allocated(folder, shards))
        entries = self._references(plan)
        if self._open_staging.abandoned:
            progress.note(f"{folder} was another build's and is cleared: this one starts anew")
        with closing(Journal(folder, self._key)) as journal, closing(WeightFiles(folder, shards)) as files:
            self.resumed_bytes = files.write(stages, journal, limits, progress)
            self._files |= files.records(limits, progress)
        for shard in shards:
            for weight, offset in shard.offsets():
                file = shard.file.removeprefix(f"{weight.folder}/")
                entries[weight.key] = WeightEntry(
                    weight.name, weight.dtype, weight.shape, "engine", (Piece(file, offset, weight.nbytes),),
                    shortened(weight.sources), weight.transform,
                )  # fmt: skip
        return [entries[weight.key] for weight in plan]

    @property
    def roots(self) -> Mapping[Location, Path]:
        """The folders that the entries of the weight table lie in, while the engine is being written."""
        roots: dict[Location, Path] = {"engine": self._open_staging.path}
        return roots | ({"checkpoint": self._checkpoint.path} if self._checkpoint else {})

    def drop_weights(self, entries: Sequence[WeightEntry]) -> None:
        """Removes the files of weights that are held elsewhere now."""
        for file in {piece.file for entry in entries if entry.location == "engine" for piece in entry.pieces}:
            del self._files[file]
            (self._open_staging.path / file).unlink()

    def copy_tokenizer(self, checkpoint: Path) -> list[str]:
        """Copies tokenizer, generation settings, licences and notices; returns the names in the engine."""
        carried = read_carried_files(checkpoint)
        for name, data in carried.items():
            self._write(name, [data])
        return list(carried)

    def finish_rank(self, folder: str, manifest: Manifest) -> Manifest:
        """Writes the engine.json of a rank's part, with all that was written below `folder`."""
        self._write(f"{folder}/{BY_REFERENCE}", [_BY_REFERENCE_TEXT])
        manifest = self._completed(manifest, f"{folder}/")
        self._write(f"{folder}/{MANIFEST_NAME}", [manifest.to_json().encode()])
        return manifest

    def finish(self, manifest: Manifest) -> Manifest:
        """Writes engine.json last and puts the engine in its place. Returns the manifest as written.

        The parts of an engine for several ranks vouch for their own files: each may be moved alone.
        """
        if manifest.parallel is None:
            self._write(BY_REFERENCE, [_BY_REFERENCE_TEXT])
        manifest = self._completed(manifest)
        self._write(MANIFEST_NAME, [manifest.to_json().encode()])
        self._open_staging.publish()
        self._staging = None
        return manifest

    @property
    def _open_staging(self) -> Staging:
        if self._staging is None:
            raise InternalError("the engine writer is not open")
        return self._staging

    def _write(self, name: str, chunks: Sequence[bytes] | Iterator[bytes | memoryview]) -> FileRecord:
        self._files[name] = write_file(self._open_staging.path / name, chunks)
        return self._files[name]

    def _references(self, plan: Sequence[PlannedWeight]) -> dict[str, WeightEntry]:
        """The table rows of the weights that stay in the checkpoint, by name."""
        # TensorInfo.file has its links resolved, the table wants the name inside the checkpoint's folder
        shards = self._checkpoint.shards if self._checkpoint else {}
        names = {header.file: name for name, header in shards.items()}
        entries = {}
        for weight in plan:
            if not weight.reference:
                continue
            for tensor in weight.reference:
                if tensor.file not in names:
                    raise InternalError(f"{tensor.file}, which {weight.name} refers to, is no file of the checkpoint")
                if tensor.dtype != weight.dtype:
                    raise InternalError(f"{weight.name} refers to {tensor.name}, which has another dtype")
            region = weight.region or Region()
            pieces = tuple(_stored(names[tensor.file], tensor, region) for tensor in weight.reference)
            entry = WeightEntry(
                weight.name, weight.dtype, weight.shape, "checkpoint", pieces,
                shortened(weight.sources), weight.transform,
            )  # fmt: skip
            if entry.nbytes != weight.nbytes:
                raise InternalError(f"{weight.name} has {weight.nbytes} bytes and refers to {entry.nbytes}")
            entries[weight.key] = entry
        return entries

    def _completed(self, manifest: Manifest, part: str = "") -> Manifest:
        """Fills in what only the writer knows, and checks that the manifest names only what is there."""
        written = {
            name.removeprefix(part): record
            for name, record in self._files.items()
            if (name.startswith(part) if part else not name.startswith(RANK_PREFIX))
        }
        graphs = {graph.file for graph in manifest.graphs.values()}
        owned = manifest.weight_files("engine")
        if missing := (graphs | owned) - written.keys():
            raise InternalError(f"the manifest names files that were not written: {sorted(missing)}")
        checkpoint = manifest.checkpoint
        referenced = manifest.weight_files("checkpoint")
        if missing := referenced - checkpoint.files.keys():
            raise InternalError(f"the fingerprint lacks files that weights refer to: {sorted(missing)}")
        folder = Path(checkpoint.path)
        with resource_errors(folder):
            mtimes = {name: os.stat(folder / name).st_mtime_ns for name in sorted(referenced)}
        files = {name: record for name, record in written.items() if name not in graphs}
        return replace(manifest, files=files, checkpoint=replace(checkpoint, mtimes_ns=mtimes))


def _stored(file: str, tensor: TensorInfo, region: Region) -> Piece:
    """Where the region of a tensor lies in the checkpoint."""
    width = math.prod(tensor.shape[1:]) * itemsize(tensor.dtype)
    begin, end = region.rows or (0, tensor.shape[0] if tensor.shape else 1)
    offset, rows = tensor.offset + begin * width, end - begin
    if region.columns is None:
        return Piece(file, offset, rows * width)
    left, right = (column * itemsize(tensor.dtype) for column in region.columns)
    return Piece(file, offset + left, rows * (right - left), right - left, width)


def _check_complete(shards: Sequence[Shard], stages: Sequence[Stage]) -> None:
    """Raises InternalError unless the units make as many bytes of each weight as it has."""
    made: Counter[str] = Counter()
    for stage in stages:
        for unit in stage.units:
            for part in unit.parts:
                made[part.weight.key] += part.nbytes
    wanted = {weight.key: weight.nbytes for shard in shards for weight in shard.weights}
    wrong = sorted(name for name in wanted.keys() | made.keys() if wanted.get(name, 0) != made[name])
    if wrong:
        raise InternalError(f"the units make {made[wrong[0]]} bytes of {wrong[0]}, planned {wanted.get(wrong[0], 0)}")


def _allocated(folder: Path, shards: Sequence[Shard]) -> int:
    """Bytes of disk that the files of an earlier, stopped build take already."""
    paths = [folder / shard.file for shard in shards]
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())


def _check_apart(out: Path, checkpoint: Path) -> None:
    """Raises EngineError when one of the two folders lies in the other."""
    target, source = Path(os.path.realpath(out)), checkpoint.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise EngineError(
            f"output {out}", expected=f"a folder apart from the checkpoint {checkpoint}", fix="Choose another output."
        )
