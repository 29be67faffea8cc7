"""Files that a command writes at its end: whether it can, said before it computes for hours."""

from __future__ import annotations

import os
from pathlib import Path


def check_outputs(*paths: Path | None) -> None:
    """Raises ResourceError for the first file that no folder is there for, or none that can be written to."""
    from dsv3export.errors import ResourceError

    for path in paths:
        if path is None:
            continue
        folder = path.absolute().parent
        if path.is_dir():
            raise ResourceError(str(path), expected="the name of a file", got="a folder")
        if not folder.is_dir():
            raise ResourceError(
                str(path), expected="a folder to write it in", got=f"{folder}, which is none", fix="Make it first."
            )
        if not os.access(folder, os.W_OK):
            raise ResourceError(str(path), expected="a folder that can be written to", got=str(folder))
