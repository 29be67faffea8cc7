"""Are the files of an engine, and those of the checkpoint that it refers to, what engine.json says?"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dsv3export.checkpoint.header import MAX_HEADER_BYTES
from dsv3export.dtypes import NUMPY, itemsize
from dsv3export.engine.manifest import CheckpointRecord, FileRecord, Location, Manifest, ShardRecord, WeightEntry
from dsv3export.engine.paths import inside, is_plain_relative
from dsv3export.engine.tokenizer_files import TOKENIZER_FOLDER
from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import EngineError

Verify = Literal["auto", "full"]
_CHUNK = 16 << 20
_SECOND = 10**9
_REBUILD_OR_RESTORE = (
    "Put the checkpoint back as it was, or rebuild the engine (with --copy-weights it needs no checkpoint)."
)


def check_files(engine: Path, manifest: Manifest, verify: Verify) -> None:
    """Checks the files table: each file inside the engine, of the recorded size, and unaltered.

    "auto" hashes a file only if its modification time is not the recorded one, "full" always. Tokenizer files may be
    missing: token ids still run. Raises EngineError.
    """
    for name, record in manifest.files.items():
        path = inside(engine, name, f"engine.json: files: {name!r}")
        if name.startswith(f"{TOKENIZER_FOLDER}/") and not path.exists():
            continue
        status = _stat(path)
        _expect(f"{path}: size in bytes", record.size, status.st_size)
        if verify == "full" or status.st_mtime_ns != record.mtime_ns:
            _check_digest(path, record)


def read_graph(engine: Path, name: str, manifest: Manifest) -> bytes:
    """The bytes of a graph, after their digest was checked. Raises EngineError."""
    if name not in manifest.graphs:
        raise EngineError(f"{engine}/engine.json: graphs", expected=repr(name), got="none", fix=REBUILD)
    record = manifest.graphs[name]
    path = inside(engine, record.file, f"engine.json: graphs.{name}.file")
    _expect(f"{path}: size in bytes", record.size, _stat(path).st_size)
    with _readable(path):
        data = path.read_bytes()
    _expect(f"{path}: sha256", record.sha256, hashlib.sha256(data).hexdigest())
    return data


def check_weights(manifest: Manifest) -> None:
    """Checks each row of the weight table against itself and against the size of its file. Raises EngineError."""
    seen = set()
    for entry in manifest.weights:
        where = f"engine.json: weight {entry.name!r}"
        if entry.name in seen:
            raise EngineError(where, expected="each name once", got="a second one", fix=REBUILD)
        seen.add(entry.name)
        if entry.dtype not in NUMPY:
            raise EngineError(f"{where}: dtype", expected=" ".join(NUMPY), got=repr(entry.dtype), fix=REBUILD)
        _expect(f"{where}: nbytes", math.prod(entry.shape) * itemsize(entry.dtype), entry.nbytes)
        _check_pieces(manifest, entry, where)


def check_references(manifest: Manifest) -> None:
    """Checks that the checkpoint files which weights refer to are as they were at build time. Raises EngineError.

    Size, header and modification time are compared; weight bytes are not read, however large the model is.
    """
    referenced = manifest.weight_files("checkpoint")
    checkpoint = manifest.checkpoint
    if referenced and not Path(checkpoint.path).is_dir():
        raise EngineError(
            f"checkpoint {checkpoint.path}", expected="the folder that the engine was built from", got="none",
            fix=_REBUILD_OR_RESTORE,
        )  # fmt: skip
    for name in sorted(referenced):
        _check_shard(checkpoint, name)


def check_outside_headers(engine: Path, manifest: Manifest) -> None:
    """Checks that no weight begins inside its file's safetensors header. Raises EngineError."""
    folders: dict[Location, Path] = {"engine": engine, "checkpoint": Path(manifest.checkpoint.path)}
    data_starts = {
        location: {name: _data_start(folder / name) for name in manifest.weight_files(location)}
        for location, folder in folders.items()
    }
    for entry in manifest.weights:
        starts = data_starts[entry.location]
        for piece in entry.pieces:
            if piece.offset < starts[piece.file]:
                raise EngineError(
                    f"engine.json: weight {entry.name!r}",
                    expected=f"bytes behind the header of {piece.file}, which ends at {starts[piece.file]}",
                    got=f"{piece.offset} to {piece.end}", fix=REBUILD,
                )  # fmt: skip


def _check_pieces(manifest: Manifest, entry: WeightEntry, where: str) -> None:
    """Each piece within a file that the manifest vouches for, none empty beside others, and no byte twice.

    So an array is never larger than the files that it is put together from.
    """
    table: Mapping[str, FileRecord | ShardRecord] = (
        manifest.files if entry.location == "engine" else manifest.checkpoint.files
    )
    if not entry.pieces:
        raise EngineError(f"{where}: pieces", expected="at least one", got="none", fix=REBUILD)
    for piece in entry.pieces:
        if piece.file not in table:
            raise EngineError(f"{where}: file", expected="a file of the manifest", got=repr(piece.file), fix=REBUILD)
        size = table[piece.file].size
        if piece.end > size:
            raise EngineError(
                where, expected=f"bytes within the {size} of {piece.file}",
                got=f"{piece.offset} to {piece.end}", fix=REBUILD,
            )  # fmt: skip
        if not piece.nbytes and len(entry.pieces) > 1:
            raise EngineError(where, expected="pieces of at least a byte", got="an empty one", fix=REBUILD)
    for before, after in pairwise(sorted(entry.pieces)):
        if before.file == after.file and before.end > after.offset:
            raise EngineError(
                where, expected=f"each byte of {after.file} once",
                got=f"{before.offset} to {before.end} and {after.offset} to {after.end}", fix=REBUILD,
            )  # fmt: skip


def _check_shard(checkpoint: CheckpointRecord, name: str) -> None:
    if not is_plain_relative(name):
        raise EngineError("engine.json: checkpoint", expected="file names inside the checkpoint", got=repr(name))
    path, record = Path(checkpoint.path) / name, checkpoint.files[name]
    status = _stat(path, _REBUILD_OR_RESTORE)
    _expect(f"{path}: size in bytes", record.size, status.st_size, _REBUILD_OR_RESTORE)
    _expect(f"{path}: sha256 of the header", record.header_sha256, _header_digest(path), _REBUILD_OR_RESTORE)
    # whole seconds, as archives and container images keep no more
    if name in checkpoint.mtimes_ns and checkpoint.mtimes_ns[name] // _SECOND != status.st_mtime_ns // _SECOND:
        raise EngineError(
            str(path), expected="the file as it was when the engine was built", got="one modified since then",
            fix=_REBUILD_OR_RESTORE,
        )  # fmt: skip


def _data_start(path: Path) -> int:
    """Where the header of a safetensors file ends."""
    with _readable(path), path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _header_digest(path: Path) -> str:
    """As `Checkpoint.fingerprint`: sha256 of the length field and the JSON of a safetensors file."""
    with _readable(path), path.open("rb") as file:
        field = file.read(8)
        length = int.from_bytes(field, "little")
        return hashlib.sha256(field + file.read(min(length, MAX_HEADER_BYTES))).hexdigest()


def _check_digest(path: Path, record: FileRecord) -> None:
    digest = hashlib.sha256()
    with _readable(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    _expect(f"{path}: sha256", record.sha256, digest.hexdigest())


def _stat(path: Path, fix: str = REBUILD) -> os.stat_result:
    """Raises EngineError unless `path` is a regular file: reading a pipe or a device would not end."""
    try:
        status = path.stat()
    except OSError as error:
        raise EngineError(str(path), expected="a file", got=error.strerror or str(error), fix=fix) from None
    if not stat.S_ISREG(status.st_mode):
        raise EngineError(str(path), expected="a regular file", got="something else", fix=fix)
    return status


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which reads `path`, into an EngineError."""
    try:
        yield
    except OSError as error:
        raise EngineError(str(path), expected="a readable file", got=error.strerror or str(error)) from error


def _expect(what: str, expected: object, got: object, fix: str = REBUILD) -> None:
    if expected != got:
        raise EngineError(what, expected=str(expected), got=str(got), fix=f"The file was altered or damaged. {fix}")
