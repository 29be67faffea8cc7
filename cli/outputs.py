"""Files that a command writes at its end: whether it can, said before it computes for hours."""

from __future__ import annotations

from pathlib import Path


def check_outputs(*paths: Path | None) -> None:
    """Raises ResourceError for the first file that cannot be written."""
    from dsv3export.engine.resources import require_writable

    for path in paths:
        if path is not None:
            require_writable(path)


def check_plot(path: Path | None) -> None:
    """The same for a picture; raises BackendError where one is asked for and matplotlib is missing."""
    if path is not None:
        from dsv3export.report.matplotlib_figure import require_matplotlib

        require_matplotlib()
        check_outputs(path)
