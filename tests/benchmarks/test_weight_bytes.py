"""Bytes of weights per token, by hand for a checkpoint, and the same for an engine of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.presets import PRESETS
from benchmarks.subjects import Subject, transformers
from benchmarks.synthetic import write_checkpoint
from benchmarks.weight_bytes import weight_bytes
from dsv3export.config import ModelConfig
from dsv3export.graphs.build import build_engine
from dsv3export.model_size import count_parameters


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_dict(dict(PRESETS["smoke"]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", PRESETS["smoke"])


def test_a_token_reads_its_experts_one_row_of_the_embedding_and_all_else(checkpoint: Path, config: ModelConfig) -> None:
    found = weight_bytes(transformers(checkpoint, "bfloat16", "eager"), config)
    total = count_parameters(config).total
    idle_experts = 6 * 3 * 128 * 128  # of 8, with three matrices each, in the one MoE layer
    other_rows = (512 - 1) * 128
    assert found.total == 2 * total
    assert found.per_token == pytest.approx(2 * (total - idle_experts - other_rows))


def test_an_int8_engine_reads_about_half_of_what_bfloat16_does(
    checkpoint: Path, config: ModelConfig, tmp_path: Path
) -> None:
    build_engine(checkpoint, tmp_path / "engine", precision="int8")
    ours = weight_bytes(Subject("ours", "dsv3export", tmp_path / "engine"), config)
    theirs = weight_bytes(transformers(checkpoint, "bfloat16", "eager"), config)
    # one byte a weight and the scales of its groups; routers and norms are in float32
    assert 0.5 < ours.per_token / theirs.per_token < 0.62


def test_a_gguf_file_reads_as_many_as_the_checkpoint_of_its_type(
    checkpoint: Path, config: ModelConfig, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="`make bench-setup` installs it")
    from benchmarks.gguf_file import write_gguf
    from dsv3export.checkpoint import Checkpoint

    file = write_gguf(Checkpoint.open(checkpoint), tmp_path / "model.gguf", "F32")
    found = weight_bytes(Subject("theirs", "llama.cpp", file), config)
    assert found == weight_bytes(transformers(checkpoint, "float32", "eager"), config)
