"""Sparse checkpoints: the published layout, whole models on no disk, and fp8 engines of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.make_sparse_checkpoint import config_of
from benchmarks.sparse import SCALE_VALUE, plan_shards, write_sparse
from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import ConfigError, ResourceError
from dsv3export.graphs.build import build_engine
from tests.support.command_line import run_process

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "benchmarks/make_sparse_checkpoint.py"
GIB = 2**30


@pytest.fixture(scope="module")
def one_moe_layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three dense layers and one of 256 experts, at the true shapes."""
    folder = tmp_path_factory.mktemp("sparse") / "checkpoint"
    write_sparse(folder, {**config_of("deepseek-v3", 4), "num_nextn_predict_layers": 0}, ROOT / "examples/tiny-dsv3")
    yield folder
    shutil.rmtree(folder)


def test_the_layout_is_the_published_one() -> None:
    """Sizes in GiB as they are listed for the published files, which have 163 shards and 8.5 MB of index."""
    shards = list(plan_shards(ModelConfig.from_dict(config_of("deepseek-v3", None))))
    sizes = [sum(tensor.nbytes for tensor in shard) for shard in shards]
    assert len(shards) == 163 and sum(map(len, shards)) == 91_991
    assert round(sum(sizes) / 1e9, 1) == 688.6
    published = {1: 4.9, 2: 4.1, 12: 1.3, 34: 1.7, 56: 1.7, 78: 1.7, 100: 1.7, 122: 1.7, 141: 3.0, 163: 6.2}
    for number, size in published.items():
        assert sizes[number - 1] / GIB == pytest.approx(size, abs=0.15), number


def test_a_shard_is_laid_out_as_the_library_does(one_moe_layer: Path) -> None:
    from safetensors import safe_open

    first = min(one_moe_layer.glob("*.safetensors"))
    with safe_open(first, framework="numpy") as file:
        names = list(file.keys())
    infos = Checkpoint.open(one_moe_layer).shards[first.name].tensors
    assert sorted(names) == sorted(infos)
    kinds = [info.dtype for info in sorted(infos.values(), key=lambda info: info.offset)]
    assert kinds == sorted(kinds, key=["F32", "BF16", "F8_E4M3"].index)


def test_it_takes_next_to_no_disk(one_moe_layer: Path) -> None:
    files = list(one_moe_layer.iterdir())
    assert sum(path.stat().st_size for path in files) > 14e9
    assert sum(path.stat().st_blocks * 512 for path in files) < 10e6
    checkpoint = Checkpoint.open(one_moe_layer)
    scale = checkpoint.array("model.layers.3.mlp.experts.255.down_proj.weight_scale_inv")
    assert scale.shape == (56, 16) and np.all(scale == np.float32(SCALE_VALUE))
    assert not checkpoint.array("model.layers.3.mlp.gate.e_score_correction_bias").any()


def test_an_fp8_engine_of_it_copies_next_to_nothing(one_moe_layer: Path, tmp_path: Path) -> None:
    report = build_engine(one_moe_layer, tmp_path / "engine", precision="fp8")
    assert report.engine_bytes < 20e6
    files = EngineFiles.open(tmp_path / "engine")
    banks = [files.entries[f"model.layers.3.mlp.experts.{part}_proj"] for part in ("gate", "up", "down")]
    assert [len(bank.pieces) for bank in banks] == [256] * 3
    assert {entry.location for entry in banks} == {"checkpoint"}
    scales = files.weight("model.layers.3.mlp.experts.up_proj_scale_inv")
    assert scales.shape == (256, 16, 56) and np.all(scales == np.float32(SCALE_VALUE))


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    command = [sys.executable, SCRIPT, str(out), "--preset", "smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    checkpoint = Checkpoint.open(out)
    assert (facts["tensors"], facts["shards"]) == (len(checkpoint.tensors), len(checkpoint.shards))
    assert facts["nbytes"] == sum(path.stat().st_size for path in out.iterdir())
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert "expected a new or empty folder" in again.stderr


@pytest.mark.parametrize(
    ("name", "layers", "said"),
    [
        ("gpt-2", None, "--preset: expected one of .*deepseek-v3.*got gpt-2"),
        ("deepseek-v3", 62, "--layers: expected 1 to 61"),
    ],
)
def test_bad_requests(name: str, layers: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(name, layers)


def test_a_disk_without_holes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the file systems of memory sticks, where a hole takes as much as anything else."""
    monkeypatch.setattr("benchmarks.sparse._SLACK_BYTES", -(1 << 40))
    monkeypatch.setattr("benchmarks.sparse.require_free_disk", lambda *_: None)
    with pytest.raises(ResourceError, match="expected a file system with sparse files, got one that takes"):
        write_sparse(tmp_path / "checkpoint", config_of("smoke", None))


@pytest.mark.slow
def test_the_671_b_model_becomes_an_fp8_engine_in_seconds(tmp_path: Path) -> None:
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"
    write_sparse(checkpoint, config_of("deepseek-v3", None), ROOT / "examples/tiny-dsv3")
    script = (
        "import resource, sys\n"
        "from dsv3export.graphs.build import build_engine\n"
        "report = build_engine(sys.argv[1], sys.argv[2], precision='fp8')\n"
        "print(report.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    command = [sys.executable, "-c", script, str(checkpoint), str(engine)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ})
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 120 and peak < 4e9
    assert sum(path.stat().st_size for path in engine.rglob("*")) < 20e6
    told = run_process("inspect", engine)
    assert told.code == 0, told.err
    assert "671.03 B total, 36.63 B active per token, 11.61 B more in MTP" in told.out
