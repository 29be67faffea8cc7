"""Opening good checkpoints: the fixtures, all storage forms, Hugging Face's cache, tied embeddings, the 671 B shape."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.checkpoint import Checkpoint, expected_tensors
from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters
from dsv3export.presets import preset
from tests.support.synthetic import (
    FP8_CONFIG,
    framed,
    random_checkpoint,
    tiny_config,
    write_safetensors,
)


def stored_arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.array(name) for name in checkpoint.tensors}


def test_the_fp8_fixture(tiny_fp8: Path) -> None:
    checkpoint = Checkpoint.open(tiny_fp8)
    index = json.loads((tiny_fp8 / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(checkpoint.tensors) == set(index)
    assert len(checkpoint.tensors) == 501
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    info, scale = checkpoint.tensors[name], checkpoint.tensors[f"{name}_scale_inv"]
    assert (info.dtype, info.shape, info.nbytes) == ("F8_E4M3", (160, 256), 160 * 256)
    assert (scale.dtype, scale.shape) == ("F32", (2, 2))
    bias = checkpoint.tensors["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert (bias.dtype, bias.shape) == ("F32", (16,))
    apart = [n for n in index if n.endswith("_scale_inv") and index[n] != index[n.removesuffix("_scale_inv")]]
    assert apart, "the fixture should have a scale in another shard than its weight"
    assert [checkpoint.shard_of(name) for name in index] == list(index.values())


def test_the_bf16_fixture(tiny_bf16: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_bf16))
    assert set(checkpoint.tensors) == set(expected_tensors(checkpoint.config))
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16", "F32"}
    assert checkpoint.tensors["model.layers.4.eh_proj.weight"].shape == (256, 512)


def test_expected_tensors_are_the_official_ones(tiny_bf16: Path) -> None:
    import safetensors

    shapes = {}
    for file in tiny_bf16.glob("*.safetensors"):
        with safetensors.safe_open(file, "numpy") as opened:
            names = list(opened.keys())
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    assert expected_tensors(ModelConfig.from_file(tiny_bf16 / "config.json")) == shapes


V2 = {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "norm_topk_prob": False}
V2 |= {"topk_method": "greedy", "scoring_func": "softmax", "q_lora_rank": None, "n_shared_experts": 2}


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, V2, {**V2, "q_lora_rank": 8}], ids=str)
def test_expected_tensors_are_those_of_transformers(changes: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = tiny_config(num_hidden_layers=3, **changes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(raw)))
    theirs: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        if "mlp.experts." in name:  # fused in memory, apart in the file
            prefix, kind = name.rsplit(".", 1)
            halves = ["gate_proj", "up_proj"] if kind == "gate_up_proj" else ["down_proj"]
            experts, rows, columns = tensor.shape
            for expert in range(experts):
                shape = (rows // len(halves), columns)
                theirs |= {f"{prefix}.{expert}.{half}.weight": shape for half in halves}
        else:
            theirs[name] = tuple(tensor.shape)
    assert expected_tensors(ModelConfig.from_dict(raw)) == theirs


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Any small model of the architecture."""
    n_group = draw(st.integers(1, 3))
    per_group, topk_group = draw(st.integers(2, 4)), draw(st.integers(1, n_group))
    size = st.integers(1, 20)
    v2 = draw(st.booleans())
    return tiny_config(
        model_type="deepseek_v2" if v2 else "deepseek_v3",
        architectures=["DeepseekV2ForCausalLM" if v2 else "DeepseekV3ForCausalLM"],
        hidden_size=draw(st.integers(1, 140)),
        intermediate_size=draw(size),
        moe_intermediate_size=draw(size),
        num_attention_heads=(heads := draw(st.integers(1, 3))),
        num_key_value_heads=heads,
        q_lora_rank=draw(st.none() | size),
        kv_lora_rank=draw(size),
        qk_nope_head_dim=draw(size),
        qk_rope_head_dim=2 * draw(size),
        v_head_dim=draw(size),
        num_hidden_layers=draw(st.integers(1, 3)),
        first_k_dense_replace=draw(st.integers(0, 4)),
        moe_layer_freq=draw(st.integers(1, 3)),
        num_nextn_predict_layers=draw(st.integers(0, 2)),
        n_group=n_group,
        topk_group=topk_group,
        n_routed_experts=draw(st.sampled_from([None, n_group * per_group])),
        n_shared_experts=draw(st.sampled_from([None, 1, 3])),
        num_experts_per_tok=draw(st.integers(1, topk_group * per_group)),
        topk_method=draw(st.sampled_from(["noaux_tc", "greedy", "group_limited_greedy"])),
        scoring_func=draw(st.sampled_from(["sigmoid", "softmax"])),
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=1.0 if v2 else 2.5,
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=30)
@given(raw=configs(), dtype=st.sampled_from(["F32", "BF16", "FP8"]), shards=st.integers(1, 3))
def test_any_model_of_the_architecture(raw: dict[str, Any], dtype: Any, shards: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.open(random_checkpoint(Path(folder) / "c", raw, 1, dtype, shards))
        logical = {name: info.shape for name, info in checkpoint.tensors.items() if not name.endswith("_scale_inv")}
        assert logical == expected_tensors(checkpoint.config)
        count = count_parameters(checkpoint.config)
        copies = ("embed_tokens.weight", "shared_head.head.weight")
        mtp = tuple(f"model.layers.{layer}." for layer in checkpoint.config.mtp_layer_ids)
        kept = {
            name: shape
            for name, shape in logical.items()
            if not (mtp and name.startswith(mtp) and name.endswith(copies))
        }
        assert count.total + count.mtp == sum(math.prod(shape) for shape in kept.values())
        assert 0 < count.active <= count.total


@pytest.mark.parametrize("dtype", ["F32", "BF16", "FP8"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("q_lora_rank", [None, 28])
def test_synthetic_checkpoints(tmp_path: Path, dtype: str, shards: int, q_lora_rank: int | None) -> None:
    config = tiny_config(q_lora_rank=q_lora_rank, num_nextn_predict_layers=1, n_shared_experts=2)
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "c", config, 1, dtype, shards))  # type: ignore[arg-type]
    assert len(checkpoint.shards) == shards
    assert checkpoint.tensors["model.layers.1.mlp.shared_experts.up_proj.weight"].shape == (48, 48)
    assert {np.isfinite(checkpoint.float32(name)).all() for name in expected_tensors(checkpoint.config)} == {True}


def test_a_bf16_checkpoint_may_keep_the_quantization_config(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "c", tiny_config(), 1, "BF16")
    (path / "config.json").write_text(json.dumps(tiny_config(quantization_config=FP8_CONFIG)))
    assert Checkpoint.open(path).config.quantization is not None


def test_rotary_buffers_of_old_programs_are_ignored(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "c", tiny_config(), 1)
    arrays = stored_arrays(Checkpoint.open(path))
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_safetensors(path / "model.safetensors", {**arrays, buffer: np.ones(4, np.float32)})
    assert set(Checkpoint.open(path).tensors) == set(arrays)


@pytest.mark.parametrize("stored", [False, True])
def test_tied_embeddings_with_and_without_a_stored_head(tmp_path: Path, stored: bool) -> None:
    path = random_checkpoint(tmp_path / "c", tiny_config(tie_word_embeddings=True), 1, "BF16")
    arrays = stored_arrays(Checkpoint.open(path))
    assert "lm_head.weight" not in arrays
    if stored:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
        write_safetensors(path / "model.safetensors", arrays)
    checkpoint = Checkpoint.open(path)
    assert ("lm_head.weight" in checkpoint.tensors) == stored
    assert "lm_head.weight" not in expected_tensors(checkpoint.config)


def test_a_snapshot_of_hugging_faces_cache(tmp_path: Path, tiny_fp8: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in tiny_fp8.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blobs / digest)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / digest)
    checkpoint, original = Checkpoint.open(snapshot), Checkpoint.open(tiny_fp8)
    assert checkpoint.fingerprint() == original.fingerprint()
    assert {info.file.parent for info in checkpoint.tensors.values()} == {blobs.resolve()}
    assert checkpoint.shard_of("lm_head.weight") == original.shard_of("lm_head.weight")
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    np.testing.assert_array_equal(checkpoint.float32(name), original.float32(name))


def test_a_fingerprint_is_json_and_changes_with_the_config_and_the_headers(tmp_path: Path) -> None:
    def fingerprint(change: Callable[[Path], object]) -> object:
        path = random_checkpoint(tmp_path / change.__name__, tiny_config(), 1, shards=2)
        change(path)
        return json.loads(json.dumps(Checkpoint.open(path).fingerprint()))

    def nothing(path: Path) -> None:
        pass

    def nothing_again(path: Path) -> None:
        pass

    def config(path: Path) -> None:
        (path / "config.json").write_text(json.dumps(tiny_config(rms_norm_eps=1e-5)))

    def header(path: Path) -> None:
        file = path / "model-00001-of-000002.safetensors"
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        file.write_bytes(framed(data[8:end].replace(b'"pt"', b'"np"')) + data[end:])

    assert fingerprint(nothing) == fingerprint(nothing_again)
    assert len({str(fingerprint(change)) for change in (nothing, config, header)}) == 3


def test_the_671b_shape_opens_in_seconds(tmp_path: Path) -> None:
    config = preset("deepseek_v3")
    tensors = official_tensors(config)
    per_shard = -(-len(tensors) // 163)
    weight_map = {}
    for shard in range(163):
        name = f"model-{shard + 1:05d}-of-000163.safetensors"
        part = tensors[shard * per_shard : (shard + 1) * per_shard]
        write_sparse(tmp_path / name, part)
        weight_map |= {tensor: name for tensor, _, _ in part}
    assert len(weight_map) > 90_000
    (tmp_path / "config.json").write_text(json.dumps(config.raw))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    start = time.process_time()
    checkpoint = Checkpoint.open(tmp_path)
    assert time.process_time() - start < 10
    assert sum(info.nbytes for info in checkpoint.tensors.values()) == pytest.approx(688.6e9, rel=1e-3)


def official_tensors(config: ModelConfig) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of the official FP8 checkpoint."""
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    plain = ("embed_tokens.weight", "mlp.gate.weight", "lm_head.weight", "eh_proj.weight", "shared_head.head.weight")
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1 or name.endswith(plain):
            tensors.append((name, "BF16", shape))
        else:
            scale = (-(-shape[0] // 128), -(-shape[1] // 128))
            tensors += [(name, "F8_E4M3", shape), (f"{name}_scale_inv", "F32", scale)]
    return tensors


def write_sparse(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    """A shard whose data is a hole in the file: it takes no disk."""
    header, offset = {}, 0
    for name, dtype, shape in tensors:
        end = offset + int(np.prod(shape)) * {"BF16": 2, "F32": 4, "F8_E4M3": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    prefix = framed(header)
    path.write_bytes(prefix)
    os.truncate(path, len(prefix) + offset)
