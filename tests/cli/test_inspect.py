"""`dsv3export inspect`: of checkpoints, engines, configs and presets, for people and machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.manifest import Manifest
from tests.support.altered import edit_bytes, edit_tensor, hard_copy, linked_copy
from tests.support.command_line import assert_refused, run_here, run_process

FIRST = "model-00001-of-000002.safetensors"
NORM = "model.layers.0.input_layernorm.weight"
WEIGHTS = "weights/model-00001.safetensors"
LAYERS = {"dense_layer": [0], "moe_layer": [1, 2, 3], "mtp_layer": [4]}


def inspected(*arguments: str | Path) -> Any:
    """The JSON of a description that succeeds."""
    outcome = run_here("inspect", *arguments, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    return json.loads(outcome.out)


def test_checkpoint(tiny_fp8: Path) -> None:
    facts = inspected(tiny_fp8)
    assert (facts["kind"], facts["layers"]) == ("checkpoint", LAYERS)
    assert facts["config"]["kv_lora_rank"] == 128
    assert facts["config"]["rope_scaling"]["factor"] == 4
    # 4 layers of 128 + 32 numbers.
    assert facts["cache"]["elements_per_token"] == 640
    assert facts["cache"]["bytes_per_token"] == {"fp32": 2560, "bf16": 1280, "f16": 1280, "fp8": 4 * (128 + 2 * 33)}
    stored = Checkpoint.open(tiny_fp8).tensors.values()
    assert facts["weights"]["tensors"] == len(stored)
    assert facts["weights"]["files"] == 2
    assert (
        facts["weights"]["bytes"]
        == sum(info.nbytes for info in stored)
        == sum(facts["weights"]["bytes_by_dtype"].values())
    )
    assert list(facts["weights"]["bytes_by_dtype"]) == ["F8_E4M3", "BF16", "F32"]
    parameters = facts["parameters"]
    assert parameters["total"] == sum(parameters["by_component"].values()) == 7_486_768
    assert parameters["active"] < parameters["total"]


def test_engine_of_a_part_of_the_layers(tiny_fp8: Path, tmp_path: Path) -> None:
    built = run_here("build", tiny_fp8, "-o", tmp_path / "engine", "--layers", "0:2", "--json")
    assert json.loads(built.out)["layers"] == [0, 1]
    facts = inspected(tmp_path / "engine")
    assert facts["layers"] == {"dense_layer": [0], "moe_layer": [1]}
    assert facts["engine"]["layers"] == [0, 1]
    assert facts["cache"]["elements_per_token"] == 2 * 160
    assert facts["parameters"]["mtp"] == 0 and facts["parameters"]["total"] < 7_486_768
    shown = run_here("inspect", tmp_path / "engine").out
    assert "only 0-1: a slice for measuring at true shapes, not a model that writes sense" in shown


def test_engine(tiny_engine: Path, tiny_fp8: Path) -> None:
    facts = inspected(tiny_engine)
    manifest = Manifest.read(tiny_engine)
    assert (facts["kind"], facts["layers"]) == ("engine", LAYERS)
    engine = facts["engine"]
    assert engine["recipe"]["precision"] == "fp32"
    assert engine["backend"]["name"] == "onnxruntime"
    assert engine["checkpoint"] == str(tiny_fp8)
    assert engine["problem"] is None
    graph = tiny_engine / "graph" / "trunk.onnx"
    assert engine["graphs"]["trunk"]["bytes"] == graph.stat().st_size
    assert engine["graphs"]["trunk"]["nodes"] == 6
    weights = facts["weights"]
    assert weights["stored"]["tensors"] + weights["referenced"]["tensors"] == len(manifest.weights)
    assert weights["stored"]["bytes"] + weights["referenced"]["bytes"] == weights["bytes"]
    assert inspected(tiny_engine, "--verify") == facts


@pytest.mark.parametrize("kind", ["config", "preset"])
def test_without_weights(kind: str, root: Path) -> None:
    path = root / "dsv3export" / "presets" / "deepseek_v3.json" if kind == "config" else "DeepSeek-V3"
    facts = inspected(path)
    assert facts["kind"] == kind
    assert "weights" not in facts
    assert round(facts["parameters"]["total"] / 1e9, 1) == 671.0
    assert facts["cache"]["elements_per_token"] == 61 * 576
    assert [len(layers) for layers in facts["layers"].values()] == [3, 58, 1]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "checkpoint",
            ["1 dense_layer (0); 3 moe_layer (1-3); 1 mtp_layer (4)", "7.49 M total", "F8_E4M3", "501 tensors"],
        ),
        ("engine", ["routed_experts", "fp32", "onnxruntime", "opset 24", "graph/trunk.onnx", "as they were built"]),
        ("deepseek-v3", ["671.03 B total, 36.63 B active per token, 11.61 B more in MTP", "68.6 KiB in bf16"]),
        ("deepseek-v2-lite", ["1 dense_layer (0); 26 moe_layer (1-26)", "q_lora_rank", "none"]),
    ],
)
def test_for_people(what: str, words: list[str], tiny_fp8: Path, tiny_engine: Path) -> None:
    places = {"checkpoint": tiny_fp8, "engine": tiny_engine}
    outcome = run_here("inspect", places.get(what, what))
    assert (outcome.code, outcome.err) == (0, "")
    assert [word for word in words if word not in outcome.out] == []


def test_paths_are_shown_as_they_are(tiny_fp8: Path, tmp_path: Path) -> None:
    """No markup, no emoji, no cut."""
    name = "[red]a[/red] :smile: " + "long" * 20
    linked_copy(tiny_fp8, tmp_path / name)
    assert name in run_here("inspect", tmp_path / name).out.replace("\n", "")


def test_engine_that_cannot_be_used_is_described_all_the_same(tiny_engine: Path, tmp_path: Path) -> None:
    engine = hard_copy(tiny_engine, tmp_path / "copy")
    (engine / WEIGHTS).unlink()
    for options in ((), ("--json",)):
        outcome = run_here("inspect", engine, *options)
        assert outcome.code == 2
        assert len(outcome.err_lines) == 1
        assert f"copy/{WEIGHTS}" in outcome.err
        assert "graph/trunk.onnx" in outcome.out
    facts = json.loads(outcome.out)
    assert f"dsv3export: error: {facts['engine']['problem']}\n" == outcome.err
    assert facts["engine"]["graphs"]["trunk"]["nodes"] is None


def test_verify_finds_altered_weights_behind_an_old_time_stamp(tiny_engine: Path, tmp_path: Path) -> None:
    engine = hard_copy(tiny_engine, tmp_path / "copy")
    status = (tiny_engine / WEIGHTS).stat()
    edit_bytes(engine / WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(engine / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run_here("inspect", engine).code == 0
    outcome = run_here("inspect", engine, "--verify")
    assert outcome.code == 2
    assert "sha256" in outcome.err


def test_verify_reads_every_weight_of_a_checkpoint(tiny_fp8: Path, tmp_path: Path) -> None:
    assert run_here("inspect", tiny_fp8, "--verify", "--quiet").code == 0
    checkpoint = linked_copy(tiny_fp8, tmp_path / "checkpoint")
    # The bfloat16 0x7FC0 is NaN.
    edit_tensor(checkpoint / FIRST, NORM, lambda data: data[:6] + b"\xc0\x7f" + data[8:])
    assert run_here("inspect", checkpoint).code == 0
    assert_refused(run_here("inspect", checkpoint, "--verify"), (FIRST, f'"{NORM}"[3]', "NaN"), tmp_path)


def test_imports_no_build_package(tiny_engine: Path) -> None:
    program = (
        "import sys; from dsv3export.cli.main import call; code = call(sys.argv[1:]); "
        "sys.exit(code or bool({'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program, "inspect", str(tiny_engine)], check=True, stdout=subprocess.DEVNULL)


def test_full_size_config_is_quick() -> None:
    """91 thousand tensors are counted, none is made."""
    assert run_process("inspect", "deepseek-v3", "--json").code == 0
