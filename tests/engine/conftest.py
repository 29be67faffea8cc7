"""Engines to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engine.small_engine import build_small_engine


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_fp8: Path) -> Path:
    """A folder with a checkpoint and an engine that refers to it; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(tiny_fp8, folder / "checkpoint")
    build_small_engine(folder / "engine", folder / "checkpoint")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, built: Path) -> Path:
    """A copy of the checkpoint, modification times and all."""
    shutil.copytree(built / "checkpoint", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def engine(tmp_path: Path, built: Path, checkpoint: Path) -> Path:
    """A copy of the engine, which refers to the copy of the checkpoint."""
    target = tmp_path / "engine"
    shutil.copytree(built / "engine", target)
    text = (target / "engine.json").read_text()
    (target / "engine.json").write_text(text.replace(str(built / "checkpoint"), str(checkpoint)))
    return target
