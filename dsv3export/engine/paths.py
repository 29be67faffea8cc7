"""File names that come from a manifest: relative, plain, and never outside their folder."""

from __future__ import annotations

from pathlib import Path

from dsv3export.errors import EngineError


def is_plain_relative(name: str) -> bool:
    """True for ``a/b.safetensors``; false for absolute, ``..``, ``.``, empty parts, backslashes or control bytes."""
    if not name or len(name) > 1024 or "\\" in name or any(ord(char) < 32 for char in name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder`/`name`, refused when it leaves `folder`, also by a symbolic link. Raises EngineError."""
    if not is_plain_relative(name):
        raise EngineError(where, expected="a relative path below the engine", got=repr(name))
    path = folder / name
    try:
        leaves = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        leaves = True
    if leaves:
        raise EngineError(where, expected="a file below the engine", got=f"{name!r}, a link that leaves it")
    return path
