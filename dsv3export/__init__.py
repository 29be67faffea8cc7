"""dsv3export: a DeepSeek-V3 checkpoint becomes a serialized engine that generates text.

The public names are imported when they are first used, so that ``import dsv3export`` costs milliseconds and pulls in
neither a backend nor torch:

- `Engine` loads an engine directory, computes logits and generates text.
- `AsyncEngine` does so for many callers at once, in one batch.
- `GenerationResult` is what `Engine.generate` returns.
- `UserError` is the base of every error that its user can mend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv3export.errors import UserError as UserError
    from dsv3export.runtime.async_engine import AsyncEngine as AsyncEngine
    from dsv3export.runtime.engine import Engine as Engine
    from dsv3export.runtime.generation import GenerationResult as GenerationResult

__version__ = "0.1.0"
__all__ = ["AsyncEngine", "Engine", "GenerationResult", "UserError", "__version__"]

_HOME = {
    "AsyncEngine": "dsv3export.runtime.async_engine",
    "Engine": "dsv3export.runtime.engine",
    "GenerationResult": "dsv3export.runtime.generation",
    "UserError": "dsv3export.errors",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
