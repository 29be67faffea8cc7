"""The bar over TensorRT's builds, and how they are stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.graphs.build import build_engine
from dsv3export.progress import NoProgress, Unit

pytest.importorskip("tensorrt_rtx_bindings")


class Watched(NoProgress):
    """Remembers the bar of the engines; stops the build at a step if it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self._title, self._stop_at = "", stop_at

    def start(self, title: str, total: int, unit: Unit) -> None:
        self._title = title
        self.totals[title], self.done[title] = total, 0

    def advance(self, amount: int) -> None:
        self.done[self._title] += amount
        if self._stop_at is not None and self.done[self._title] >= self._stop_at:
            raise KeyboardInterrupt


def test_the_bar_reaches_its_end_in_steps(tiny_fp8: Path, tmp_path: Path) -> None:
    watched = Watched()
    build_engine(tiny_fp8, tmp_path / "engine", backend="tensorrt-rtx", precision="fp8", progress=watched, layers="0:1")
    # Three kinds, two phases, 20 steps.
    assert watched.totals["building engines"] == watched.done["building engines"] == 3 * 2 * 20


def test_ctrl_c_ends_a_build(tiny_fp8: Path, tmp_path: Path) -> None:
    watched = Watched(stop_at=25)
    with pytest.raises(KeyboardInterrupt):
        build_engine(tiny_fp8, tmp_path / "engine", backend="tensorrt-rtx", precision="fp8", progress=watched)
    assert watched.done["building engines"] < 60
    assert list(tmp_path.iterdir()) == []
