"""matplotlib's figures, or one line that says how to get them. The only place that imports it."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from dsv3export.errors import BackendError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PlotFormat = Literal["png", "svg"]


def require_matplotlib() -> None:
    """Raises BackendError where it is not installed."""
    if find_spec("matplotlib") is None:
        raise BackendError(
            "--plot", expected="the package matplotlib", got="none installed", fix="pip install 'dsv3export[plot]'"
        )


def new_figure(**options: Any) -> Figure:
    """A figure alone, no pyplot: no window system is asked for, and nothing global is left behind.

    Raises BackendError without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(**options)


def figure_bytes(figure: Figure, form: PlotFormat) -> bytes:
    """The picture; equal figures give equal bytes."""
    from matplotlib import rc_context

    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "dsv3export"}):
        figure.savefig(out, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()
