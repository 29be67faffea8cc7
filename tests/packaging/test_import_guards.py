"""graphs, plugins and cli are importable as parts of dsv3export only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["graphs", "plugins", "cli"])
def test_top_level_import_is_refused(root: Path, name: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"ImportError: import this package as 'dsv3export.{name}', not as '{name}'" in done.stderr


@pytest.mark.parametrize("name", ["graphs", "plugins", "cli"])
def test_links_are_relative(root: Path, name: str) -> None:
    link = root / "dsv3export" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
