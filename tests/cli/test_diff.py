"""`dsv3export diff`: engines against their checkpoint, for people, as JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dsv3export.compare.diff_file import read_diff
from dsv3export.graphs.build import build_engine
from tests.support.altered import edit_tensor, linked_copy
from tests.support.command_line import assert_refused, run_here

EXPERT = "model.layers.2.mlp.experts.5.up_proj.weight"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("And it came to pass in the morning\n\n[0, 5, 7, 100, 33, 21, 8]\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("precision", "cache"), [("fp32", None), ("fp8", None), ("int8", "fp8"), ("int4", None), ("fp8", "bf16")]
)
def test_an_engine_is_right_at_every_precision(
    precision: str, cache: str | None, tiny_bf16: Path, prompts: Path, tmp_path: Path
) -> None:
    engine, result = tmp_path / "tiny.engine", tmp_path / "diff.json"
    build_engine(tiny_bf16, engine, precision=precision, cache_dtype=cache)
    outcome = run_here("diff", tiny_bf16, engine, "--prompts", prompts, "--json", result, "--quiet", "--threads", "1")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["first_fault"] is None
    assert f"none beyond {found['tolerance']:g}" in outcome.out
    by_name = {value["name"]: value for value in found["values"]}
    assert {
        f"layers.3.self_attn.latent_append{'.latent' if cache else ''}",
        "layers.3.mlp.experts",
        "lm_head",
        "rotary.cos",
        "final_hidden",
        "layers.4.hnorm",
        "layers.4",
    } <= by_name.keys()
    assert found["drafts"]["positions"] == sum(found["prompts"]) - 2 and found["drafts"]["top1"] > 0.8
    assert [held["stage"] for held in found["caches"]] == [f"layers.{layer}" for layer in range(5)]
    assert all((held["format"]["relative"] > 0) == (cache is not None) for held in found["caches"])
    assert all(held["propagated"]["relative"] < 0.1 for held in found["caches"])
    assert 0 < by_name["lm_head"]["propagated"]["relative"] < 1e-2
    assert len(by_name["layers.3"]["propagated"]["by_position"]) == max(7, by_name["layers.3"]["shape"][1])
    assert found["logits"]["top1"] == 1
    assert found["prompts"] == [by_name["layers.3"]["shape"][1], 7]
    worst = found["logits"]["worst"][0]
    assert worst["prompt"] == 1 or worst["before"].startswith("<｜begin▁of▁sentence｜>")
    assert worst["expected"]["text"]
    assert sum(found["logits"]["kl_histogram"]["counts"]) == sum(found["prompts"])


def test_an_engine_of_another_checkpoint_is_not(tiny_bf16: Path, prompts: Path, tmp_path: Path) -> None:
    """One expert's rows upside down in the checkpoint that the engine was built from."""
    altered = linked_copy(tiny_bf16, tmp_path / "altered")
    for shard in altered.glob("*.safetensors"):
        if EXPERT.encode() in shard.read_bytes()[:200_000]:
            edit_tensor(shard, EXPERT, lambda data: _upside_down(data, rows=128))
    engine, result = tmp_path / "wrong.engine", tmp_path / "diff.json"
    build_engine(altered, engine, precision="int4")
    # The first prompt has to meet that expert.
    prompts.write_text(json.dumps(list(range(3, 90))) + "\n", encoding="utf-8")
    outcome = run_here("diff", tiny_bf16, engine, "--prompts", prompts, "--json", result, "--quiet")
    assert (outcome.code, outcome.err) == (1, "")
    fault = json.loads(result.read_text(encoding="utf-8"))["first_fault"]
    assert fault["name"] == "layers.2.mlp.experts"
    assert fault["metric"] == "relative error of a row"
    assert fault["value"] > fault["bound"] == 2e-2
    assert fault["expected"] != fault["got"]
    assert "first fault    layers.2.mlp.experts: relative error" in outcome.out


def _upside_down(data: bytes, rows: int) -> bytes:
    return np.frombuffer(data, ml_dtypes.bfloat16).reshape(rows, -1)[::-1].tobytes()


def test_two_checkpoints_and_a_precision(tiny_bf16: Path, tiny_fp8: Path, prompts: Path, tmp_path: Path) -> None:
    """The FP8 checkpoint holds the rounded weights of the BF16 one."""
    result = tmp_path / "diff.json"
    outcome = run_here("diff", tiny_bf16, tiny_fp8, "--prompts", prompts, "--json", result, "--quiet", "--all")
    found = json.loads(result.read_text(encoding="utf-8"))
    assert outcome.code == 1
    assert found["first_fault"]["bound"] == 1e-4
    assert "layers.1.mlp.shared_experts.swish" in outcome.out
    assert found["logits"]["kl_mean"] < 0.05


def test_other_precisions_have_no_tolerance_by_default(tiny_bf16: Path, tiny_engine: Path, prompts: Path) -> None:
    outcome = run_here("diff", tiny_bf16, tiny_engine, "--prompts", prompts, "--precision", "int8", "--quiet")
    assert outcome.code == 0
    assert "give --tolerance" in outcome.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("\n", ("prompts.txt", "a prompt in each line")),
        ("", ("prompts.txt", "empty")),
        ("[1, 2", ("prompts.txt:1", "JSON")),
        ("[1, 99999]", ("2047", "99999")),
        ("[]", ("at least one",)),
    ],
)
def test_bad_prompts(line: str, says: tuple[str, ...], tiny_bf16: Path, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text(line, encoding="utf-8")
    assert_refused(run_here("diff", tiny_bf16, tiny_bf16, "--prompts", prompts), says, tmp_path)


def test_what_cannot_be_compared(tiny_bf16: Path, prompts: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ((tiny_bf16, "deepseek-v3"), ("deepseek-v3", "no weights")),
        ((tiny_bf16, tmp_path / "nothing"), ("nothing",)),
        ((tiny_bf16, tiny_bf16, "--tolerance", "-1"), ("--tolerance",)),
        ((tiny_bf16, tiny_bf16, "--calibration", "no.txt"), ("no.txt",)),
    ):
        assert_refused(run_here("diff", *arguments, "--prompts", prompts), says, tmp_path)
    assert_refused(run_here("diff", tiny_bf16, tiny_bf16, "--prompts", tmp_path / "no.txt"), ("no.txt",), tmp_path)


def test_an_mtp_layer_that_one_side_lacks(tiny_bf16: Path, prompts: Path, tmp_path: Path) -> None:
    build_engine(tiny_bf16, tmp_path / "e", precision="fp8", mtp=False)
    result = tmp_path / "diff.json"
    outcome = run_here("diff", tiny_bf16, tmp_path / "e", "--prompts", prompts, "--json", result, "--quiet")
    found = json.loads(result.read_text(encoding="utf-8"))
    assert (outcome.code, found["drafts"]) == (0, None)
    assert found["only_expected"] == ["layers.4"] and "MTP drafts" not in outcome.out


def test_the_error_split_by_cause(tiny_bf16: Path, prompts: Path, tmp_path: Path) -> None:
    build_engine(tiny_bf16, tmp_path / "e", precision="int8", cache_dtype="fp8")
    result = tmp_path / "diff.json"
    options = ["--prompts", prompts, "--json", result, "--causes", "--quiet", "--threads", "1"]
    outcome = run_here("diff", tiny_bf16, tmp_path / "e", *options)
    assert outcome.code == 0 and "Own error by cause" in outcome.out and "logits, whole model" in outcome.out
    split = json.loads(result.read_text(encoding="utf-8"))["causes"]
    layers = {layer["stage"]: layer for layer in split["layers"]}
    assert list(layers) == ["embed", "layers.0", "layers.1", "layers.2", "layers.3", "head", "layers.4"]
    for stage, layer in layers.items():
        assert [cause["name"] for cause in layer["causes"]] == ["weights", "activations", "cache", "backend"]
        size = {cause["name"]: cause["relative"] for cause in layer["causes"]}
        assert (size["weights"] > 1e-4) == (stage != "embed")
        assert (size["cache"] > 1e-4) == stage.startswith("layers.")
        assert size["backend"] < max(size.values()) or stage == "embed"
        assert stage == "embed" or abs(sum(cause["share"] for cause in layer["causes"]) - 1) < 1e-6
    assert len(split["kl"]) == 4 and all(0 < kl < 1e-2 for kl in split["kl"])
    assert read_diff(result).causes is not None


def test_causes_lie_between_a_checkpoint_and_an_engine(
    tiny_bf16: Path, tiny_engine: Path, prompts: Path, tmp_path: Path
) -> None:
    for sides in ((tiny_bf16, tiny_bf16), (tiny_engine, tiny_engine), (tiny_engine, tiny_bf16)):
        outcome = run_here("diff", *sides, "--prompts", prompts, "--causes")
        assert_refused(outcome, ("--causes", "a checkpoint as A and an engine as B"), tmp_path)


def test_an_engine_built_from_something_else_differs_by_its_backend(
    tiny_bf16: Path, prompts: Path, tmp_path: Path
) -> None:
    """What no rounding explains is left to the last step of the chain."""
    altered = linked_copy(tiny_bf16, tmp_path / "altered")
    for shard in altered.glob("*.safetensors"):
        if EXPERT.encode() in shard.read_bytes()[:200_000]:
            edit_tensor(shard, EXPERT, lambda data: np.frombuffer(data, ml_dtypes.bfloat16)[::-1].tobytes())
    build_engine(altered, tmp_path / "e", precision="fp8")
    result = tmp_path / "diff.json"
    outcome = run_here("diff", tiny_bf16, tmp_path / "e", "--prompts", prompts, "--json", result, "--causes", "--quiet")
    layers = {layer["stage"]: layer for layer in json.loads(result.read_text(encoding="utf-8"))["causes"]["layers"]}
    share = {stage: layer["causes"][-1]["share"] for stage, layer in layers.items()}
    assert outcome.code == 1 and share["layers.2"] > 0.1 and abs(share["layers.3"]) < 0.02
