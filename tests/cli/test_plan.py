"""`dsv3export plan`: for people and machines, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import assert_refused, run_here


def test_the_arithmetic_is_shown() -> None:
    outcome = run_here("plan", "deepseek-v3", "--device", "h200", "--batch", "128")
    assert (outcome.code, outcome.err) == (0, "")
    for said in (
        "deepseek-v3 on 6 x h200",
        "128 x 4,096 tokens x 61 layers x 1,152 bytes",
        "(1 - (1 - 8/256)^128)",
        "8 with every sequence's cache on each device",
        "36,625,618,432 active parameters",
        "bound by bandwidth",
        "bound by compute",
    ):
        assert said in outcome.out


def test_json_is_one_line_and_adds_up() -> None:
    outcome = run_here("plan", "deepseek-v3", "--precision", "int4", "--cache-dtype", "fp8", "--devices", "8", "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    plan = json.loads(outcome.out)
    assert (plan["device"]["name"], plan["devices"], plan["matrix_type"]) == ("h100", 8, "bf16")
    assert plan["cache"]["value"] == 4096 * 39_528
    decode = plan["decode"]
    read = sum(term["value"] for term in decode["bytes"])
    assert decode["seconds"] == pytest.approx(read / (8 * 3350e9))


def test_a_checkpoint_is_planned_as_it_was_published(tiny_fp8: Path, tiny_bf16: Path) -> None:
    for path, matrix_type in ((tiny_fp8, "fp8"), (tiny_bf16, "bf16")):
        outcome = run_here("plan", path, "--context", "64", "--json")
        assert json.loads(outcome.out)["matrix_type"] == matrix_type


def test_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.toml"
    recipe.write_text('precision = "int4"\n[components.head]\nformat = "fp32"\n', encoding="utf-8")
    plan = json.loads(run_here("plan", "deepseek-v3", "--recipe", recipe, "--json").out)
    sizes = {term["name"]: term["value"] for term in plan["weights"]}
    assert sizes["head"] == 129280 * 7168 * 4


def test_another_device() -> None:
    outcome = run_here("plan", "deepseek-v2-lite", "--memory-gb", "96", "--bandwidth-gbs", "460", "--tflops", "3")
    assert "deepseek-v2-lite on 1 x custom" in outcome.out
    assert "1 sequence of 4,096 tokens" in outcome.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "h100", "--memory-gb", "80"), ("--device h100", "--memory-gb")),
        (("--memory-gb", "80"), ("--bandwidth-gbs", "--tflops")),
        (("--memory-gb", "0"), ("--memory-gb", "0")),
        (("--device", "abacus"), ("--device", "abacus")),
        (("--batch", "0"), ("--batch", "0")),
        (("--context", "200000"), ("163840", "200000")),
        (("--context", "100", "--prompt", "101"), ("prompt", "101")),
        (("--recipe", "no.toml"), ("no.toml",)),
        (("--precision", "int3"), ("--precision", "int3")),
    ],
)
def test_bad_input(options: tuple[str, ...], says: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(run_here("plan", "deepseek-v3", *options), says, tmp_path)


def test_ranks() -> None:
    outcome = run_here("plan", "deepseek-v3", "--device", "h100", "--pp", "2", "--tp", "8", "--batch", "32")
    assert (outcome.code, outcome.err) == (0, "")
    for said in (
        "deepseek-v3 on 16 x h100",
        "Ranks: pp 2 x tp 8 x ep 1",
        "33 x 2 x 7/8 x 14,336 (all_reduce)",
        "of weights and cache: fits in 72.0 GB",
        "2, of 32 sequences",
    ):
        assert said in outcome.out


def test_ranks_as_json() -> None:
    outcome = run_here("plan", "deepseek-v2-lite", "--precision", "int4", "--device", "rtx-4090", "--pp", "4", "--json")
    ranks = json.loads(outcome.out)["ranks"]
    assert ranks["layout"] == {"pp": 4, "tp": 1, "ep": 1}
    assert (len(ranks["ranks"]), ranks["fits"]) == (4, True)
    assert ranks["ranks"][0]["sent_bytes_per_token"] == 2048 * 2
    assert ranks["tokens_per_second"] == pytest.approx(1 / ranks["seconds"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tp", "3"), "--tp = 3: expected a divisor of the model's 128 attention heads"),
        (("--ep", "7"), "--ep = 7: expected a divisor of the model's 256 routed experts"),
        (("--pp", "99"), "--pp 99: expected at most the model's 61 layers"),
        (("--tp", "8", "--devices", "4"), "--devices: expected 8, of pp 1 x tp 8 x ep 1, got 4"),
        (("--tp", "0"), "'--tp': 0 is not in the range"),
    ],
)
def test_bad_layouts(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    assert_refused(run_here("plan", "deepseek-v3", *options), [says], tmp_path)
