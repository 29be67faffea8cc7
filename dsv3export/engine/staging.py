"""The folder an engine is built in: `<target>.partial`, owned by one process, then renamed to the target.

A file with a lock marks the folder as ours. A killed build loses its lock, so that the next build may go on with what
it left, or clear it; a folder without the mark is somebody else's and is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from dsv3export.engine.journal import JOURNAL_NAME, journal_key
from dsv3export.engine.manifest import MANIFEST_NAME
from dsv3export.engine.parallel import RANK_PREFIX
from dsv3export.engine.resources import resource_errors
from dsv3export.errors import EngineError, ResourceError

LOCK_NAME = ".dsv3export-build"
WEIGHTS_FOLDER = "weights"


class Staging:
    """Acquires `<target>.partial` on construction; end it with `publish`, `discard` or `keep`.

    Args:
        target: The engine to be.
        force: Whether an engine that is there may be replaced.
        key: Of the build: weights that a build of the same key has left stay there, with its journal.

    Attributes:
        path: The folder.
        abandoned: Whether another build's weights were cleared.

    Raises EngineError when the target may not be (over)written or another build runs, ResourceError when the
    machine refuses.
    """

    def __init__(self, target: Path, force: bool, key: str = "") -> None:
        self.target, self._force = Path(os.path.realpath(target)), force
        self.path = self.target.with_name(self.target.name + ".partial")
        self._aside = self.target.with_name(self.target.name + ".replaced")
        check_target(self.target, force)
        self._created_parents = [parent for parent in self.target.parents if not parent.exists()]
        with resource_errors(target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire(self.path)
            try:
                left = journal_key(self.path)
                self.abandoned = left is not None and left != key
                _clear(self.path, keep_weights=bool(key) and left == key)
                self._recover()
                check_target(self.target, force)
            except BaseException:
                self.discard()
                raise

    def _recover(self) -> None:
        """Finishes or undoes the exchange of a --force build that was killed in the middle of it."""
        if not os.path.lexists(self._aside):
            return
        if not (self._aside / MANIFEST_NAME).is_file():
            raise _foreign(self._aside)
        if self.target.exists():
            shutil.rmtree(self._aside)
        else:
            self._aside.rename(self.target)

    def publish(self) -> None:
        """Makes the built folder the target, in one rename; an engine that was there is moved aside and removed."""
        with resource_errors(self.target):
            _sync_folders(self.path)
            check_target(self.target, self._force)  # again: a build may take hours
            replaces = self.target.exists() and any(self.target.iterdir())
            if replaces:
                self.target.rename(self._aside)
            try:
                self.path.rename(self.target)
            except OSError:
                if replaces:
                    self._aside.rename(self.target)
                raise
            _sync(self.target.parent)
        with contextlib.suppress(OSError):  # the engine stands: leftovers are no reason to fail
            (self.target / JOURNAL_NAME).unlink(missing_ok=True)
            (self.target / LOCK_NAME).unlink()
            if replaces:
                shutil.rmtree(self._aside)
        os.close(self._lock)

    def discard(self) -> None:
        """Removes what was built, and the parent folders that were created for it."""
        with contextlib.suppress(OSError):
            _clear(self.path)
            # last, so that the folder is marked as ours as long as anything is in it
            (self.path / LOCK_NAME).unlink()
            self.path.rmdir()
            for parent in self._created_parents:
                parent.rmdir()
        os.close(self._lock)

    def keep(self) -> None:
        """Leaves what was built where it is, for a build of the same key to go on with."""
        os.close(self._lock)


def check_target(target: Path, force: bool) -> None:
    """Raises EngineError unless `target` is absent, an empty folder, or (with `force`) an engine."""
    if not os.path.lexists(target):
        return
    what = f"output {target}"
    if not target.is_dir():
        raise EngineError(what, expected="a new folder", got="a file", fix="Choose another output.")
    with resource_errors(target):
        names = os.listdir(target)
    if not names:
        return
    if MANIFEST_NAME not in names:
        raise EngineError(
            what, expected="a new folder or an engine", got="a folder with other content", fix="Choose another output."
        )
    if not force:
        raise EngineError(what, expected="a new folder", got="an engine that is already there", fix="Use --force.")


def _acquire(partial: Path) -> int:
    """Creates or takes over `partial`; returns the file descriptor that holds its lock."""
    while True:
        if os.path.lexists(partial) and not _is_ours(partial):
            raise _foreign(partial)
        partial.mkdir(exist_ok=True)
        try:
            lock = os.open(partial / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            continue  # another build removed the folder just now
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(partial / LOCK_NAME)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise ResourceError(f"another build is writing {partial}", fix="Wait for it or stop it.") from None
        except FileNotFoundError:
            pass
        os.close(lock)  # the file that we locked was moved away with a finished build


def _foreign(path: Path) -> EngineError:
    return EngineError(str(path), expected="no such file", got="one that no build left behind", fix="Move it away.")


def _is_ours(partial: Path) -> bool:
    if partial.is_symlink() or not partial.is_dir():
        return False
    names = os.listdir(partial)
    return not names or LOCK_NAME in names


def _clear(partial: Path, keep_weights: bool = False) -> None:
    for entry in partial.iterdir():
        kept = entry.name in (JOURNAL_NAME, WEIGHTS_FOLDER) or entry.name.startswith(RANK_PREFIX)
        if entry.name == LOCK_NAME or (keep_weights and kept):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        _sync(Path(folder))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
