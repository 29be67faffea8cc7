from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.engine.paths import inside, is_plain_relative
from dsv3export.errors import EngineError

ESCAPES = ["", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/", "a/.", "a\\b", "a\0b", "a\nb", "x" * 1025]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_may_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    assert not is_plain_relative(name)
    with pytest.raises(EngineError, match="expected a relative path below the engine") as caught:
        inside(tmp_path, name, "engine.json: files")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "weights/model-00001.safetensors", "..a/b..", "ü/x y"])
def test_plain_names_are_taken(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, "") == tmp_path / name


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    (folder / "real").mkdir(parents=True)
    (folder / "good").symlink_to("real")
    (folder / "bad").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    assert inside(folder, "good/x", "") == folder / "good/x"
    for name in ("bad/x", "loop/x"):
        with pytest.raises(EngineError, match="a link that leaves it"):
            inside(folder, name, "engine.json: files")


def test_the_engine_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path / "link", "x", "") == tmp_path / "link/x"
