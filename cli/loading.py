"""Loads an engine for a command."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.providers import Choice


def load_engine(path: str | Path, threads: int | None, provider: Choice, **settings: Any) -> Engine:
    """`Engine.load`; that another provider than the preferred one is taken becomes a line on stderr."""
    from dsv3export.runtime.engine import Engine

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        engine = Engine.load(path, threads, provider=provider, **settings)
    for warning in caught:
        click.echo(f"dsv3export: {warning.message}", err=True)
    return engine
