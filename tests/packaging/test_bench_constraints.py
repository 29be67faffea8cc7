"""The packages of `make bench-setup` are pinned beside those of `make setup`, and apart from them."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def pinned(file: Path) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([one.operator for one in requirement.specifier] == ["=="] for requirement in requirements)
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in requirements}


def test_the_bench_extra_is_pinned_within_its_ranges(root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pins = pinned(root / "benchmarks" / "constraints.txt")
    for requirement in map(Requirement, extras["bench"]):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_no_package_is_pinned_twice(root: Path) -> None:
    assert not pinned(root / "benchmarks" / "constraints.txt").keys() & pinned(root / "constraints.txt").keys()
