"""`dsv3export sensitivity`: from a checkpoint to a recipe that `build` takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from dsv3export.cli.sensitivity import budget_of, precisions_of
from dsv3export.engine.manifest import Manifest
from dsv3export.graphs.build import build_engine
from dsv3export.recipe import Recipe
from tests.support.command_line import assert_refused, run_here

OPTIONS = ("--layer-groups", "1", "--max-tokens", "60", "--quiet", "--json")


@pytest.fixture
def text(tmp_path: Path, root: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text((root / "tests/data/goldens/heldout.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8")
    return path


def test_a_mix_is_found_written_built_and_as_good_as_said(tiny_bf16: Path, text: Path, tmp_path: Path) -> None:
    mix = tmp_path / "mix.toml"
    outcome = run_here("sensitivity", tiny_bf16, "--text", text, *OPTIONS, "--max-kl", "0.0035", "-o", mix)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    int8, int4 = found["uniform"]
    assert int8["measured"]["kl"] < found["mix"]["measured"]["kl"] <= 0.0035 < int4["measured"]["kl"]
    assert int4["nbytes"] < found["mix"]["nbytes"] < int8["nbytes"]
    assert found["met"] is True
    recipe = Recipe.from_toml(mix)
    assert recipe.to_json() == found["recipe"]
    assert mix.read_text(encoding="utf-8").startswith("# written by dsv3export sensitivity\n# KL from float32: ")

    engine = tmp_path / "mix.engine"
    build_engine(tiny_bf16, engine, recipe=mix)
    # The search knows nothing of the MTP layer, which is number 4; the rotary table is no weight of the model.
    others = ("layers.4.", "rotary.")
    trunk = [entry.nbytes for entry in Manifest.read(engine).weights if not any(each in entry.name for each in others)]
    assert sum(trunk) == found["mix"]["nbytes"]
    measured = run_here("eval", engine, "--text", text, "--against", tiny_bf16, "--json", "--quiet")
    # On the whole of the text, of which 60 tokens were measured.
    assert json.loads(measured.out)["against"]["kl_mean"] == pytest.approx(found["mix"]["measured"]["kl"], rel=1.0)

    # Another target is answered from the journal, and one out of reach is said to be.
    again = run_here("sensitivity", tiny_bf16, "--text", text, *OPTIONS, "--max-kl", "1e-9", "-o", mix)
    assert again.code == 1
    missed = json.loads(again.out)
    assert missed["met"] is False
    assert missed["uniform"] == found["uniform"]


def test_a_ranking_for_people(tiny_bf16: Path, text: Path) -> None:
    outcome = run_here(
        "sensitivity", tiny_bf16, "--text", text, "--layer-groups", "1", "--max-tokens", "20", "--precisions", "int4",
        "--budget", "6",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    assert "routed_experts 1-3" in outcome.out
    assert "not measured" in outcome.out
    assert "The mix" not in outcome.out


def test_what_is_refused(tiny_bf16: Path, text: Path, tmp_path: Path) -> None:
    mix = tmp_path / "mix.toml"
    for arguments, says in (
        (("--text", text, "-o", mix), ("-o", "--max-kl or --max-bytes")),
        (("--text", tmp_path / "no.txt"), ("no.txt",)),
        (("--text", text, "--precisions", "int8,int2"), ("--precisions", "int8,int2")),
        (("--text", text, "--budget", "soon"), ("--budget", "soon")),
        (("--text", text, "--max-kl", "0"), ("--max-kl",)),
        (("--text", text, "--max-bytes", "much"), ("--max-bytes", "much")),
        (("--text", text, "--chunk-tokens", "99999"), ("chunk tokens", "99999")),
        (("--text", text, "--calibration", text), ("text.txt", "255 tokens")),
        (("--text", text, "--journal", text), ("text.txt", "another file")),
    ):
        text.write_text("And it came to pass", encoding="utf-8")
        assert_refused(run_here("sensitivity", tiny_bf16, *arguments), says, tmp_path)
    assert not mix.exists()


def test_budgets_and_precisions() -> None:
    assert budget_of("40") == (40, float("inf"))
    assert [budget_of(text)[1] for text in ("90s", "30m", "12h")] == [90, 1800, 43200]
    assert precisions_of("int4, bf16") == ("bf16", "int4")
    for wrong in ("0", "-1", "1d", "", "1.5h"):
        with pytest.raises(click.BadParameter):
            budget_of(wrong)
    for wrong in ("", "int8,int8", "fp32"):
        with pytest.raises(click.BadParameter):
            precisions_of(wrong)
