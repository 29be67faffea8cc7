"""Loads an engine for a command."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.progress_bar import progress_on_stderr

if TYPE_CHECKING:
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.providers import Choice


def load_engine(
    path: str | Path, threads: int | None, provider: Choice, quiet: bool = False, **settings: Any
) -> Engine:
    """`Engine.load`, with a bar for weights that go to a GPU.

    That another provider than the preferred one is taken becomes a line on stderr.
    The other ranks of an engine of several are told when the command ends, however it does.
    """
    from dsv3export.runtime.engine import Engine

    with progress_on_stderr(quiet) as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        engine = Engine.load(path, threads, provider=provider, progress=progress, **settings)
    context = click.get_current_context(silent=True)  # none in a benchmark
    if context is not None:
        context.call_on_close(engine.close)
    for warning in caught:
        click.echo(f"dsv3export: {warning.message}", err=True)
    return engine
