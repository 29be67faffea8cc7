"""The picture of a comparison."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from dsv3export.errors import BackendError
from dsv3export.report.diff_plot import diff_plot
from tests.report.diffs import diff, hostile


def test_png_and_svg() -> None:
    pytest.importorskip("matplotlib")
    assert diff_plot(diff(), "png").startswith(b"\x89PNG\r\n\x1a\n")
    drawn = diff_plot(replace(diff(), expected="a$b^{$"), "svg")
    assert b"<svg" in drawn
    assert drawn == diff_plot(replace(diff(), expected="a$b^{$"), "svg")


def test_strange_numbers_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert diff_plot(hostile(), "png").startswith(b"\x89PNG")


def test_without_matplotlib_it_says_how_to_get_it() -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    with mock.patch("builtins.__import__", refuse), pytest.raises(BackendError, match=r"dsv3export\[plot\]"):
        diff_plot(diff(), "png")
