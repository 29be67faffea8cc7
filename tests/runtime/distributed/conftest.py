"""The toy model cut over ranks, and the same in one piece."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from dsv3export.engine.parallel import Layout
from tests.runtime.distributed.toy_ranks import build_toy_ranks


@pytest.fixture(scope="session")
def toy_ranks(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Path]:
    """``toy_ranks(layout)``: an engine of the toy model for that many ranks; built once, not to be altered."""
    folder = tmp_path_factory.mktemp("ranks")

    @cache
    def built(layout: Layout) -> Path:
        path = folder / f"{layout.pp}-{layout.tp}-{layout.ep}"
        build_toy_ranks(path, tiny_fp8, layout)
        return path

    return built
