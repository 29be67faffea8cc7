"""`dsv3export bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3export.bench import bandwidth, measure, plot
from dsv3export.errors import ResourceError
from dsv3export.report import matplotlib_figure
from tests.support.command_line import assert_refused, run_here

QUICK = ("--new-tokens", "4", "--repeats", "1", "--threads", "1", "--quiet")


@pytest.fixture(autouse=True)
def _a_quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one reads gigabytes."""
    monkeypatch.setattr(bandwidth, "larger_than_caches", lambda: 1 << 24)


def test_json_has_every_case(tiny_engine: Path) -> None:
    outcome = run_here("bench", tiny_engine, "--batch", "1,3", "--prompt-tokens", "8,20", *QUICK, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    found = json.loads(outcome.out)
    assert [(row["batch"], row["prompt_tokens"]) for row in found["results"]] == [(1, 8), (1, 20), (3, 8), (3, 20)]
    for row in found["results"]:
        rate = row["decode_tokens_per_second"]
        assert 0 < rate["slowest"] == rate["median"] == rate["fastest"]
        expected = row["weight_bytes_per_step"] * rate["median"] / row["batch"] / found["read_bytes_per_second"]
        assert row["share_of_read_bandwidth"] == pytest.approx(expected, rel=1e-3)


def test_tables_ratios_and_a_picture(tiny_engine: Path, tmp_path: Path) -> None:
    picture = tmp_path / "rates.png"
    options = ("--prompt-tokens", "8", "--speculate", "0,1", *QUICK, "--compare", tiny_engine, "--plot", picture)
    outcome = run_here("bench", tiny_engine, *options)
    assert outcome.code == 0 and "first / second" in outcome.out and "GB/s" in outcome.out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("ratio", "code"), [("0.0001", 0), ("1000", 1)])
def test_a_ratio_is_a_gate(tiny_engine: Path, ratio: str, code: int) -> None:
    options = ("--prompt-tokens", "8", *QUICK, "--compare", tiny_engine, "--min-ratio", ratio, "--json")
    outcome = run_here("bench", tiny_engine, *options)
    assert outcome.code == code
    assert len(json.loads(outcome.out)["ratios"]) == 1
    assert ("below 1000" in outcome.err) == bool(code)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--batch", "0"), ("--batch", "above 0", "'0'")),
        (("--speculate", "0,9"), ("speculate", "0 to 8")),
        (("--batch", "1,x"), ("--batch", "'1,x'")),
        (("--min-ratio", "1"), ("--min-ratio", "--compare")),
        (("--plot", "rates.pdf"), ("--plot", ".png or .svg", "rates.pdf")),
        (("--plot", "missing/rates.png"), ("cannot write missing/rates.png", "No such file")),
        (("--prompt-tokens", "5000"), ("1024",)),
    ],
)
def test_what_is_refused(tiny_engine: Path, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]) -> None:
    assert_refused(run_here("bench", tiny_engine, *options), says, tmp_path)


def test_what_cannot_be_drawn_is_said_before_measuring(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matplotlib_figure, "find_spec", lambda name: None)
    monkeypatch.setattr(measure, "measure", pytest.fail)
    outcome = run_here("bench", tiny_engine, *QUICK, "--plot", tmp_path / "rates.png")
    assert_refused(outcome, ("--plot", "matplotlib", "dsv3export[plot]"), tmp_path)


def test_results_are_printed_even_if_drawing_fails(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise ResourceError("no space left")

    monkeypatch.setattr(plot, "bench_plot", fail)
    options = ("--prompt-tokens", "8", *QUICK, "--json", "--plot", tmp_path / "rates.png")
    outcome = run_here("bench", tiny_engine, *options)
    assert outcome.code == 2 and "no space left" in outcome.err
    assert len(json.loads(outcome.out)["results"]) == 1
