"""The picture of a comparison."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsv3export.errors import BackendError
from dsv3export.report import matplotlib_figure
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


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib_figure, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"dsv3export\[plot\]"):
        diff_plot(diff(), "png")


def test_a_panel_for_each_thing_that_was_compared() -> None:
    pytest.importorskip("matplotlib")
    drawn = diff_plot(diff(), "svg").decode("utf-8")
    without = diff_plot(replace(diff(), causes=None, caches=(), drafts=None), "svg").decode("utf-8")
    for title in (
        "Own error by cause",
        "Latent cache: relative error",
        "MTP drafts, KL: mean",
        "MTP drafts, KL divergence",
    ):
        assert title in drawn
        assert title not in without
    assert "weights, 40% of the logits" in drawn
