"""The folder in which a benchmark's model lies in all the forms that its subjects load."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.launch import run_worker
from benchmarks.presets import PRESETS
from benchmarks.recipes import with_method
from benchmarks.synthetic import write_checkpoint
from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig

_LOSSLESS = "BF16"  # what the synthetic checkpoints are stored in


class Models:
    """Makes what is missing in `folder`; checkpoints and GGUF files that are there already are taken as they are.

    Args:
        folder: Where; it must exist.
        preset: The model.
        reuse_engines: Take engines that are there, too. They may have been made by another version of dsv3export.
    """

    def __init__(self, folder: Path, preset: str, reuse_engines: bool = False) -> None:
        self._folder, self._preset, self._reuse_engines = folder, preset, reuse_engines

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.from_dict(dict(PRESETS[self._preset]), source=self._preset)

    @cached_property
    def checkpoint(self) -> Path:
        """The checkpoint in BF16."""
        folder = self._folder / f"{self._preset}-checkpoint"
        config = folder / "config.json"
        if not config.exists() or json.loads(config.read_text(encoding="utf-8")) != PRESETS[self._preset]:
            # config.json is written last: an interrupted run leaves nothing that looks finished
            write_checkpoint(folder, PRESETS[self._preset])
        return folder

    def engine(self, precision: str, repeats: int) -> tuple[Path, list[dict[str, Any]]]:
        """The engine, and the facts of each of its `repeats` builds; none if it was there.

        Integers are rounded to nearest. The preset's search for scales takes minutes, and the engine that it makes has
        the same kernels and the same number of bytes.
        """
        folder = self._folder / f"{self._preset}-{precision}.engine"
        if self._reuse_engines and folder.exists():
            return folder, []
        job = {
            "checkpoint": self.checkpoint,
            "engine": folder,
            "precision": precision,
            "options": {"recipe": self._recipe(precision)} if precision.startswith("int") else {},
        }
        return folder, [run_worker("build", 1, **job) for _ in range(repeats)]

    def gguf(self, file_type: str) -> Path:
        """The GGUF file with weights of `file_type`; needs the packages of llama.cpp."""
        from benchmarks.gguf_file import quantise_gguf, write_gguf

        if file_type == _LOSSLESS:
            return self._file(file_type, lambda out: write_gguf(Checkpoint.open(self.checkpoint), out, file_type))
        source = self.gguf(_LOSSLESS)
        return self._file(file_type, lambda out: quantise_gguf(source, out, file_type))

    def _recipe(self, precision: str) -> Path:
        recipe = self._folder / f"{precision}.toml"
        recipe.write_text(with_method(precision, "rtn"), encoding="utf-8")
        return recipe

    def _file(self, file_type: str, make: Callable[[Path], Path]) -> Path:
        out = self._folder / f"{self._preset}-{file_type}.gguf"
        if not out.exists():
            make(out.with_suffix(".partial")).rename(out)
        return out
