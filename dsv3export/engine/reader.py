"""Opens an engine directory. Whatever lies in it may come from a stranger: all of it is checked before use."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

import numpy as np

from dsv3export.config import ModelConfig
from dsv3export.dtypes import NUMPY
from dsv3export.engine.manifest import MANIFEST_NAME, Manifest, WeightEntry
from dsv3export.engine.pieces import joined, read_array
from dsv3export.engine.typed_json import REBUILD
from dsv3export.engine.verify import (
    Verify,
    check_files,
    check_outside_headers,
    check_references,
    check_weights,
    read_graph,
)
from dsv3export.errors import EngineError, InternalError

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


class EngineFiles:
    """An engine that has passed its checks; weights are mapped, but for those that lie in several places.

    Attributes:
        path: The directory, absolute.
        manifest: What engine.json says.
        config: The model's config.
        layers: The decoder layers that the engine has: all of the model's, but for an engine of a part of it.
        entries: The weight table by name.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.config = ModelConfig.from_dict(manifest.model, source=f"{path / MANIFEST_NAME}: model")
        self.layers = tuple(range(self.config.num_hidden_layers)) if manifest.layers is None else manifest.layers
        count = self.config.num_hidden_layers
        if self.layers[-1] >= count:
            what, got = f"{MANIFEST_NAME}: layers", str(self.layers[-1])
            raise EngineError(what, expected=f"layers below num_hidden_layers ({count})", got=got, fix=REBUILD)
        self.entries: Mapping[str, WeightEntry] = MappingProxyType({entry.name: entry for entry in manifest.weights})
        self._maps: dict[Path, mmap.mmap] = {}
        self._assembled: WeakValueDictionary[str, Array] = WeakValueDictionary()

    @classmethod
    def open(cls, path: Path | str, verify: Verify = "auto") -> EngineFiles:
        """Reads and checks an engine directory.

        Args:
            verify: "auto" hashes only the weights files whose modification time has changed, "full" all of them.

        Raises:
            EngineError: It is no engine, of another format version, or a file of it (or of the checkpoint that it
                refers to) is missing, damaged or altered.
            ConfigError: The model config in it is not valid.
        """
        folder = Path(path).absolute()
        _require_engine(folder)
        manifest = Manifest.read(folder)
        check_weights(manifest)
        check_files(folder, manifest, verify)
        check_references(manifest)
        check_outside_headers(folder, manifest)
        for name in manifest.graphs:
            read_graph(folder, name, manifest)
        return cls(folder, manifest)

    def graph(self, name: str = "trunk") -> bytes:
        """A graph file's bytes, checked again. Raises EngineError if there is none of that name."""
        return read_graph(self.path, name, self.manifest)

    def weight(self, name: str) -> Array:
        """A read-only array in the stored dtype and shape.

        Where the weight's bytes are one range of one file, it is a view of the mapped file, and takes no memory that
        the system could not take back. Otherwise the pieces are read into an array of its own; as long as that lives,
        it is what every further call returns.

        Raises:
            EngineError: The file was cut or cannot be read, although it has passed its checks.
        """
        if name not in self.entries:
            raise InternalError(f"the engine has no weight {name!r}")
        entry = self.entries[name]
        root = self.path if entry.location == "engine" else Path(self.manifest.checkpoint.path)
        first, *others = joined(entry.pieces)
        if not others and not first.run:
            mapped = self._map(root / first.file, first.end)
            return np.ndarray(entry.shape, NUMPY[entry.dtype], mapped, first.offset)
        array = self._assembled.get(name)
        if array is None:
            array = read_array(root, entry)
            array.flags.writeable = False
            self._assembled[name] = array
        return array

    def release_pages(self) -> None:
        """Lets the system take back the memory of all mapped pages; they are read again when they are used.

        Arrays that were put together from pieces are not touched.
        """
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, file: Path, end: int) -> mmap.mmap:
        if file not in self._maps:
            try:
                with file.open("rb") as stream:
                    self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise EngineError(str(file), expected="a readable file", got=str(error)) from error
        if len(self._maps[file]) < end:
            raise EngineError(str(file), expected=f"{end} bytes", got=f"{len(self._maps[file])}: it was cut just now")
        return self._maps[file]


def _require_engine(folder: Path) -> None:
    if (folder / MANIFEST_NAME).is_file():
        return
    what, expected = f"engine {folder}", "a directory written by `dsv3export build`"
    if (folder / "config.json").is_file():
        fix = f"Build an engine from it first: dsv3export build {folder} -o ENGINE"
        raise EngineError(what, expected=expected, got="a checkpoint", fix=fix)
    got = "a folder without engine.json" if folder.is_dir() else "a file" if folder.exists() else "nothing there"
    raise EngineError(what, expected=expected, got=got)
