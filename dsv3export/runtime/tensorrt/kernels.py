"""Kernels that TensorRT-RTX compiles when an engine runs, kept for the next time in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsv3export.engine.reader import EngineFiles
from dsv3export.runtime.device import Device


class KernelCache:
    """One file for an engine on a kind of device.

    TensorRT-RTX itself checks whether a file fits its version, the device and the driver; what does not is left alone
    and written anew. A folder that cannot be written is no error: kernels are then compiled each time.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._cache: Any = None
        self._loaded = b""

    @classmethod
    def of(cls, files: EngineFiles, device: Device, folder: Path | None = None) -> KernelCache:
        """For an engine, known by its graphs, on a device, known by its name."""
        import platformdirs

        base = folder or platformdirs.user_cache_path("dsv3export", appauthor=False)
        digests = "".join(sorted(record.sha256 for record in files.manifest.graphs.values()))
        key = hashlib.sha256(digests.encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
        return cls(base / "tensorrt-rtx" / f"{key}-{name}.kernels")

    def attach(self, config: Any) -> None:
        """Lets contexts of an `IRuntimeConfig` share the cache."""
        if self.path is None:
            return
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                self._loaded = self.path.read_bytes()
                self._cache.deserialize(self._loaded)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes the file if there are new kernels; it appears whole or not at all."""
        if self._cache is None or self.path is None:
            return
        memory = self._cache.serialize()
        data = b"" if memory is None else bytes(memory)
        if not data or data == self._loaded:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.path.parent, prefix=f"{self.path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(partial).replace(self.path)
            except OSError:
                Path(partial).unlink(missing_ok=True)
                raise
            self._loaded = data
