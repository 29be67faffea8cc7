"""FP8 checkpoints whose weights end in cut blocks: dequantised here anew, and run by executor and engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.generation import prompt_logits
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from tests.e2e.goldens import Array
from tests.e2e.variants import token_ids
from tests.reference.float64_model import Float64Model
from tests.support.compare import LOGITS, MARGIN, assert_close
from tests.support.synthetic import random_checkpoint, tiny_config

# Rows and columns just below, at, just above and well above a multiple of 128, and below one block.
SIZES: dict[str, dict[str, Any]] = {
    "around one block": {"hidden_size": 129, "intermediate_size": 127, "moe_intermediate_size": 128, "q_lora_rank": 1},
    "over two blocks": {
        "hidden_size": 130,
        "intermediate_size": 300,
        "moe_intermediate_size": 257,
        "kv_lora_rank": 200,
    },
    "as DeepSeek-V3's 576 latent rows": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "hidden_size": 64},
}


def dequantised(path: Path) -> dict[str, Array]:
    """All weights as float32, read by the safetensors package; each element times the scale of its block."""
    tensors: dict[str, Array] = {}
    for shard in sorted(path.glob("*.safetensors")):
        with safetensors.safe_open(shard, framework="pt") as file:
            tensors |= {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118 (no dict)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scale, weight = tensors.pop(name), tensors[name.removesuffix("_scale_inv")]
        rows, columns = np.indices(weight.shape) // 128
        weight *= scale[rows, columns]
    return tensors


@pytest.mark.parametrize("name", SIZES)
def test_cut_blocks(name: str, tmp_path: Path) -> None:
    config = tiny_config(**SIZES[name], num_nextn_predict_layers=1)
    path = random_checkpoint(tmp_path / "checkpoint", config, seed=3, dtype="FP8", shards=3)
    weights, ids = dequantised(path), token_ids(config)
    checkpoint = Checkpoint.open(path)
    quantised = [tensor for tensor, info in checkpoint.tensors.items() if info.dtype == "F8_E4M3"]
    assert len(quantised) > 20
    for tensor in quantised:
        assert_close(checkpoint.float32(tensor), weights[tensor], 0.0, tensor)

    model = Float64Model(config, weights.__getitem__)
    expected, drafts = model.logits(ids), model.draft_logits(ids)
    assert model.margin > MARGIN
    executor = Executor(checkpoint)
    assert_close(executor.logits(ids), expected, LOGITS, "executor")
    assert_close(executor.draft_logits(ids), drafts, LOGITS, "drafts")
    build_engine(path, tmp_path / "engine")
    session = OnnxRuntimeSession(EngineFiles.open(tmp_path / "engine"), threads=1)
    assert_close(prompt_logits(session, ids), expected, LOGITS, "engine")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_unquantised_checkpoints(dtype: Any, tmp_path: Path) -> None:
    """The same weights, rounded or not, read without the product's reader."""
    config = tiny_config()
    path = random_checkpoint(tmp_path / "checkpoint", config, seed=4, dtype=dtype, shards=2)
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    weights, ids = dequantised(path), token_ids(config)
    expected = Float64Model(config, weights.__getitem__).logits(ids)
    assert_close(Executor.from_checkpoint(path).logits(ids), expected, LOGITS, "executor")
    build_engine(path, tmp_path / "engine", copy_weights=True)
    session = OnnxRuntimeSession(EngineFiles.open(tmp_path / "engine"), threads=1)
    assert_close(prompt_logits(session, ids), expected, LOGITS, "engine")
