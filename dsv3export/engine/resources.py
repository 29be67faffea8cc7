"""Failures of the machine, not of the input: disk full, read-only, too large. Each becomes one clear line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv3export.errors import ResourceError

_FIXES = {
    errno.ENOSPC: "Free some space or choose another disk for the output.",
    errno.EDQUOT: "Free some of your quota or choose another disk for the output.",
    errno.EFBIG: "Raise the file size limit (`ulimit -f`) or choose another disk for the output.",
    errno.EROFS: "Choose an output on a disk that can be written.",
    errno.EACCES: "Choose an output folder that you may write to.",
    errno.EPERM: "Choose an output folder that you may write to.",
}


@contextmanager
def resource_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes `path`, into a ResourceError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = _FIXES.get(error.errno or 0, "")
        raise ResourceError(f"cannot write {path}: {reason}", fix=fix) from error


def require_writable(path: Path) -> None:
    """Before long work whose result `path` shall get: raises ResourceError where that file cannot be written now."""
    if path.is_dir():
        raise ResourceError(str(path), expected="a file to write", got="a folder")
    with resource_errors(path):
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        probe.touch()
        probe.unlink()


def require_free_disk(folder: Path, nbytes: int) -> None:
    """Raises ResourceError when the disk of `folder` has less than `nbytes` free."""
    with resource_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise ResourceError(
            f"not enough disk space in {folder.parent}",
            expected=f"{nbytes / 1e9:.3f} GB free",
            got=f"{free / 1e9:.3f} GB",
            fix=_FIXES[errno.ENOSPC],
        )
