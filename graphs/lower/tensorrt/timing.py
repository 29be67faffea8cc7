"""What TensorRT has measured of kernels, kept from build to build: it makes the second one of a model much shorter.

TensorRT-RTX measures nothing when it builds; it chooses kernels on the user's device, and its runtime keeps those.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from dsv3export.graphs.lower.tensorrt.objects import IBuilderConfig

DIRECTORY_VARIABLE = "DSV3EXPORT_TIMING_CACHE"


class TimingCache:
    """A file of measurements, of one version of TensorRT.

    TensorRT itself checks that they are of this device, and of this version. What it refuses, or what cannot be read or
    written, costs time and nothing else: no build fails for it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @classmethod
    def of_user(cls, version: str) -> TimingCache:
        """In ``$DSV3EXPORT_TIMING_CACHE``, or below the user's cache folder."""
        from platformdirs import user_cache_path

        chosen = os.environ.get(DIRECTORY_VARIABLE)
        folder = Path(chosen) if chosen else user_cache_path("dsv3export") / "timing"
        return cls(folder / f"tensorrt-{version}.cache")

    def give(self, config: IBuilderConfig) -> None:
        """Let a build use what earlier ones measured."""
        measured = b""
        with suppress(OSError):
            measured = self._file.read_bytes()
        for data in dict.fromkeys((measured, b"")):
            cache = config.create_timing_cache(data)
            if cache is not None and config.set_timing_cache(cache, False):
                return

    def take(self, config: IBuilderConfig) -> None:
        """Keep what a build has measured."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self._file.parent, delete=False) as written:
                written.write(bytes(cache.serialize()))
            os.replace(written.name, self._file)
