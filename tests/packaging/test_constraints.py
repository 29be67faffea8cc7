"""constraints.txt pins all that is installed, and CI installs just that."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.skipif(
    not list(Path(sys.prefix, "bin").glob(".installed-*")), reason="this environment was not made by `make setup`"
)

EXTRAS = ("cpu", "build", "rtx", "kernels", "plot", "serve", "test", "dev")
# The build of torch that is made for GPUs fixes the versions of these itself; the CPU build needs none of them.
BROUGHT_BY_CUDA_TORCH = ("nvidia-", "cuda-", "triton")


def pins(root: Path) -> dict[str, Version]:
    """The exact versions that hold for the running interpreter, by canonical name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not an exact pin"
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def needed() -> set[str]:
    """The canonical names of all packages that `make setup` brings in here, by their metadata."""
    todo = [("dsv3export", extra) for extra in ("", *EXTRAS)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for requirement in (Requirement(line) for line in metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                found = {(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)} - seen
                seen |= found
                todo += found
    return {name for name, _ in seen} - {"dsv3export"}


def test_everything_that_setup_installs_is_pinned(root: Path) -> None:
    unpinned = needed() - set(pins(root))
    assert {name for name in unpinned if not name.startswith(BROUGHT_BY_CUDA_TORCH)} == set()


def test_nothing_else_is_pinned(root: Path) -> None:
    assert set(pins(root)) - needed() == set()


def test_installed_versions_are_the_pinned_ones(root: Path) -> None:
    installed = {name: Version(Version(metadata.version(name)).public) for name in pins(root)}
    assert installed == pins(root)
