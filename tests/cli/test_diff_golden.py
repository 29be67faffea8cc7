"""`dsv3export diff GOLDEN MODEL`: a right engine, a planted fault at its place, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsv3export.golden import Golden
from tests.support.altered import edit_tensor, linked_copy
from tests.support.command_line import assert_refused, run_here

EXPERT = "model.layers.2.mlp.experts.{}.up_proj.weight"
LAYERS = ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "head", "layers.4"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("And it came to pass in the morning\n[0, 5, 7, 100, 33, 21, 8]\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def golden(tiny_fp8: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All numbers of all values, of the float32 executor."""
    path = tmp_path_factory.mktemp("goldens") / "full.golden"
    options = ("--digest", "full", "--detail", "all", "--logits", "full", "--new-tokens", "3", "--quiet")
    outcome = run_here("golden", "record", tiny_fp8, "--prompts", prompts, "-o", path, *options)
    assert (outcome.code, outcome.err) == (0, "")
    return path


def test_a_right_engine(golden: Path, tiny_engine: Path, prompts: Path, tmp_path: Path) -> None:
    result = tmp_path / "diff.json"
    outcome = run_here("diff", golden, tiny_engine, "--prompts", prompts, "--json", result, "--quiet", "--threads", "1")
    assert (outcome.code, outcome.err) == (0, ""), outcome.out
    found = json.loads(result.read_text(encoding="utf-8"))
    assert (found["kind"], found["digest"], found["first_fault"]) == ("dsv3export golden diff", "full", None)
    assert [line["name"] for line in found["layers"]] == LAYERS
    assert all(line["error"]["measured"]["value"] <= line["error"]["bound"] for line in found["layers"])
    assert any(line["error"]["measured"]["value"] > 0 for line in found["layers"])
    assert [(line["name"], line["overlap"]) for line in found["values"] if line["overlap"] is not None] == [
        (f"layers.{layer}.mlp.gate", 1.0) for layer in (1, 2, 3, 4)
    ]
    assert (found["logits"]["positions"], found["logits"]["top1"]) == (sum(found["prompts"]), 1.0)
    assert (found["continuation"]["positions"], found["continuation"]["top1"]) == (6, 1.0)
    assert "a golden has no weights" in outcome.out and "none beyond" in outcome.out
    refused = run_here("report", result)
    assert_refused(refused, ("of two models",), tmp_path)


def test_a_planted_fault_is_found_at_its_op(golden: Path, tiny_fp8: Path, tmp_path: Path) -> None:
    """The rows of one matrix of all experts of layer 2 upside down."""
    wrong, result, page = linked_copy(tiny_fp8, tmp_path / "wrong"), tmp_path / "diff.json", tmp_path / "diff.html"
    for shard in wrong.glob("*.safetensors"):
        header = shard.read_bytes()[:200_000]
        for expert in range(16):
            if EXPERT.format(expert).encode() + b'"' in header:
                edit_tensor(shard, EXPERT.format(expert), _upside_down)
    outcome = run_here("diff", golden, wrong, "--json", result, "--html", page, "--quiet")
    assert (outcome.code, outcome.err) == (1, ""), outcome.out
    found = json.loads(result.read_text(encoding="utf-8"))
    fault = found["first_fault"]
    assert (fault["name"], fault["metric"]) == ("layers.2.mlp.experts", "layers.error")
    assert fault["value"] > fault["bound"] > 0
    row = sum(found["prompts"][: fault["prompt"]]) + fault["position"]
    kept = Golden.read(golden).arrays["layers.2.mlp.experts.values"]
    assert fault["expected"] == float(kept[row, fault["index"]]) != fault["got"]
    by_name = {line["name"]: line for line in found["layers"]}
    assert by_name["layers.1"]["error"]["measured"]["value"] == 0 == by_name["layers.2"]["flips"]
    flips, tokens = by_name["layers.3"]["flips"], sum(found["prompts"])
    assert 0 < flips <= tokens and 1 - flips / tokens <= by_name["layers.3"]["overlap"] < 1
    assert found["logits"]["kl_max"] > 0
    assert "first fault   layers.2.mlp.experts: layers.error" in outcome.out
    assert "layers.2.mlp.experts: layers.error is beyond its bound" in page.read_text(encoding="utf-8")


def _upside_down(data: bytes) -> bytes:
    return np.frombuffer(data, np.uint8).reshape(128, -1)[::-1].tobytes()


def test_wrong_uses(golden: Path, tiny_engine: Path, prompts: Path, tmp_path: Path) -> None:
    others, damaged = tmp_path / "others.txt", tmp_path / "damaged.golden"
    others.write_text("[1, 2, 3]\n", encoding="utf-8")
    damaged.write_bytes(golden.read_bytes()[:-4])
    less, alone, short = (tmp_path / name for name in ("less.golden", "outputs.golden", "short.golden"))
    for path, lines, digest in ((less, prompts, "norm"), (alone, prompts, "none"), (short, others, "norm")):
        options = ("--prompts", lines, "--digest", digest, "--new-tokens", "1", "--quiet")
        assert run_here("golden", "record", tiny_engine, *options, "-o", path).code == 0
    for arguments, says in (
        ((tiny_engine, golden, "--prompts", prompts), ("a golden", "as A")),
        ((golden, golden, "--precision", "int4"), ("--precision", "goldens alone")),
        ((golden, less), ("the same --digest",)),
        ((golden, alone), ("outputs.golden", "golden check", "--digest")),
        ((alone, tiny_engine), ("outputs.golden", "golden check", "--digest")),
        ((golden, short), ("the same prompts", "other prompts")),
        ((golden, tiny_engine, "--prompts", others), ("--prompts", "recorded with", "Leave --prompts out")),
        ((golden, tiny_engine, "--causes"), ("--causes", "golden as A")),
        ((golden, tiny_engine, "--tolerance", "0.1"), ("--tolerance", "golden as A")),
        ((golden, tiny_engine, "--plot", tmp_path / "a.png"), ("--plot", "golden as A")),
        ((golden, tiny_engine, "--profile", "int2"), ("profile", "int2")),
        ((golden, tmp_path / "nothing"), ("nothing",)),
        ((damaged, tiny_engine), ("damaged.golden",)),
        ((tiny_engine, tiny_engine), ("--prompts", "no golden")),
        ((tiny_engine, tiny_engine, "--prompts", prompts, "--profile", "int4"), ("--profile", "--tolerance")),
    ):
        assert_refused(run_here("diff", *arguments), says, tmp_path)


@pytest.mark.parametrize(("digest", "logits"), [("projections", "top-4"), ("full", "full")])
def test_two_goldens_differ_as_the_first_and_the_second_s_model(
    digest: str, logits: str, tiny_fp8: Path, prompts: Path, tmp_path: Path
) -> None:
    """Int4 against what was recorded in float32: all figures are those of a model that is run."""
    options = ("--prompts", prompts, "--digest", digest, "--logits", logits, "--new-tokens", "2", "--quiet")
    mine, other = tmp_path / "mine.golden", tmp_path / "other.golden"
    for path, precision in ((mine, "fp32"), (other, "int4")):
        made = run_here("golden", "record", tiny_fp8, *options, "--precision", precision, "-o", path)
        assert (made.code, made.err) == (0, "")
    found = []
    for side in ((other,), (tiny_fp8, "--precision", "int4")):
        outcome = run_here("diff", mine, *side, "--json", tmp_path / "diff.json", "--quiet")
        assert (outcome.code, outcome.err) == (0, ""), outcome.out
        found.append(json.loads((tmp_path / "diff.json").read_text(encoding="utf-8")))
    recorded, run = ({_case(case): case["measured"] for case in each["result"]["cases"]} for each in found)
    assert recorded.keys() == {case for case in run if case[0] != "tokens"}
    for case, measured in recorded.items():
        # a token that only the first has kept counts with the rest: as much or less
        low = 0.0 if case[0].startswith(("logits.", "greedy.")) and logits != "full" else 0.98
        assert low * run[case]["value"] - 1e-6 <= measured["value"] <= 1.02 * run[case]["value"] + 1e-6, case
        assert measured["agreement"] == run[case]["agreement"] and measured["ties"] == run[case]["ties"]
    assert recorded[("layers.error", 0, "layers.2")]["value"] > 0 < recorded[("logits.kl", 0, None)]["value"]


def _case(case: dict[str, dict[str, object]]) -> tuple[object, object, object]:
    return tuple(case["measured"][key] for key in ("metric", "prompt", "layer"))  # type: ignore[return-value]
