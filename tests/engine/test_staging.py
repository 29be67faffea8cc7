"""Two builds that meet, and what a crash leaves. Each test brings about by hand what is a matter of microseconds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.manifest import MANIFEST_NAME
from dsv3export.engine.staging import LOCK_NAME, Staging
from dsv3export.errors import EngineError, ResourceError


def build(target: Path, content: str, force: bool = False) -> None:
    staging = Staging(target, force)
    (staging.path / MANIFEST_NAME).write_text(content)
    staging.publish()


def before_first_call(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Callable[[], object]) -> None:
    """Runs `act` once, just before the first call of a function."""
    function, pending = getattr(module, name), [act]

    def wrapped(*args: Any, **options: Any) -> Any:
        if pending:
            pending.pop()()
        return function(*args, **options)

    monkeypatch.setattr(module, name, wrapped)


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    partial = tmp_path / "engine.partial"
    (partial / "weights").mkdir(parents=True)
    for name in (LOCK_NAME, "weights/model-00001.safetensors", "LICENSE"):
        (partial / name).write_text("old")
    (partial / "link").symlink_to(tmp_path)
    staging = Staging(tmp_path / "engine", force=False)
    assert [path.name for path in partial.iterdir()] == [LOCK_NAME]
    staging.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_removed_by_another_build_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_first_call(monkeypatch, os, "open", (tmp_path / "engine.partial").rmdir)
    build(tmp_path / "engine", "new")
    assert (tmp_path / "engine" / MANIFEST_NAME).read_text() == "new"


def test_a_lock_that_went_away_with_a_finished_build_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_first_call(monkeypatch, fcntl, "flock", lambda: (tmp_path / "engine.partial").rename(tmp_path / "moved"))
    build(tmp_path / "engine", "new")
    assert (tmp_path / "engine" / MANIFEST_NAME).read_text() == "new"


def test_an_engine_that_appears_during_the_build_is_not_replaced(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "engine", force=False)
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / MANIFEST_NAME).write_text("theirs")
    with pytest.raises(EngineError, match="already there"):
        staging.publish()
    staging.discard()
    assert (tmp_path / "engine" / MANIFEST_NAME).read_text() == "theirs"


def test_a_failed_exchange_puts_the_old_engine_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "engine"
    build(target, "old")
    staging, rename = Staging(target, force=True), Path.rename

    def fail_for_the_new(self: Path, to: Path) -> Path:
        if self.name == "engine.partial":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(ResourceError, match="Input/output error"):
        staging.publish()
    staging.discard()
    assert (target / MANIFEST_NAME).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize("name", ["engine.partial", "engine.replaced"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_files_of_others_are_left_alone(tmp_path: Path, name: str, kind: str) -> None:
    other = tmp_path / name
    if kind == "link":
        other.symlink_to("nowhere")
    elif kind == "file":
        other.write_text("mine")
    else:
        (other / "mine").mkdir(parents=True)
    with pytest.raises(EngineError, match=f"{name}: expected no such file, got one that no build left behind"):
        Staging(tmp_path / "engine", force=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
