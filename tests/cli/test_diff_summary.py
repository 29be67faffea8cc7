"""Bars of a comparison in the terminal."""

from __future__ import annotations

import math

from dsv3export.cli.diff_summary import bar, spark_line


def test_bars_grow_with_the_logarithm() -> None:
    bars = [bar(error) for error in (0.0, 1e-9, 1e-6, 1e-3, 1e-2, 1.0)]
    assert bars[0] == bars[1] == " " * 10
    assert [len(drawn) for drawn in bars] == [10] * 6
    assert [drawn.count("█") for drawn in bars] == [0, 0, 2, 6, 7, 10]
    assert bar(math.inf) == bar(math.nan) == bar(1e3) == bars[-1]


def test_sparks_show_the_shape() -> None:
    assert spark_line([1e-3, 1e-2, 1e-1]) == " ▄█"
    assert spark_line([0.0, 0.0]) == "  "
    assert spark_line([1e-3, math.inf, math.nan]) == "███"
    assert len(spark_line([0.1] * 1000)) == 16
    assert spark_line([]) == ""
