"""All layouts of 2 and 4 ranks."""

from __future__ import annotations

from dsv3export.engine.parallel import Layout

LAYOUTS = [
    Layout(pp, tp, ep)
    for pp in (1, 2, 4)
    for tp in (1, 2, 4)
    for ep in (1, 2, 4)
    if pp * tp * ep in (2, 4)
]  # fmt: skip


def name_of(layout: Layout) -> str:
    """For the names of tests."""
    return f"pp{layout.pp}-tp{layout.tp}-ep{layout.ep}"
