"""Tensor values against independent readers: the safetensors library and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint, expected_tensors
from dsv3export.checkpoint.fp8 import dequantize
from dsv3export.errors import CheckpointError, InternalError
from tests.support.synthetic import quantize_fp8, random_checkpoint, tiny_config

torch = pytest.importorskip("torch")


def torch_tensors(path: Path) -> dict[str, Any]:
    import safetensors.torch

    tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(file)
    return tensors


def torch_value(tensors: dict[str, Any], name: str) -> np.ndarray:
    """The float32 value as torch computes it: each element times the scale at (row // 128, column // 128)."""
    value = tensors[name].to(torch.float32)
    if f"{name}_scale_inv" in tensors:
        rows, columns = (torch.arange(side) // 128 for side in value.shape)
        value = value * tensors[f"{name}_scale_inv"][rows][:, columns]
    return value.numpy()


@pytest.mark.parametrize("which", ["tiny_fp8", "tiny_bf16"])
def test_every_value_of_the_fixtures(which: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    checkpoint, tensors = Checkpoint.open(path), torch_tensors(path)
    assert set(tensors) == set(checkpoint.tensors)
    for name in expected_tensors(checkpoint.config):
        value = checkpoint.float32(name)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, torch_value(tensors, name), err_msg=name)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "FP8"])
def test_every_value_of_synthetic_checkpoints(tmp_path: Path, dtype: str) -> None:
    config = tiny_config(hidden_size=150, moe_intermediate_size=130, num_nextn_predict_layers=1)
    path = random_checkpoint(tmp_path / "c", config, 7, dtype, shards=2)  # type: ignore[arg-type]
    checkpoint, tensors = Checkpoint.open(path), torch_tensors(path)
    for name in expected_tensors(checkpoint.config):
        np.testing.assert_array_equal(checkpoint.float32(name), torch_value(tensors, name), err_msg=name)


def test_all_256_codes_of_e4m3() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    weight = codes.view(quantize_fp8(np.ones((1, 1), np.float32))[0].dtype)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    np.testing.assert_array_equal(dequantize(weight, np.ones((1, 1), np.float32), (128, 128)), expected)


@pytest.mark.parametrize("shape", [(1, 1), (127, 129), (128, 128), (160, 256), (300, 1), (1, 300)])
def test_ragged_blocks(shape: tuple[int, int]) -> None:
    original = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight, scale = quantize_fp8(original)
    assert scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    value = dequantize(weight, scale, (128, 128))
    # e4m3 has three bits of mantissa; below its smallest normal number the error is absolute.
    np.testing.assert_allclose(value, original, rtol=2**-4, atol=float(scale.max()) * 2**-10)


def test_arrays_are_read_only_views_of_the_file(tiny_bf16: Path) -> None:
    checkpoint = Checkpoint.open(tiny_bf16)
    array = checkpoint.array("model.layers.0.mlp.up_proj.weight")
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    info = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    raw = info.file.read_bytes()[info.offset : info.offset + info.nbytes]
    assert array.tobytes() == raw


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_bad_scales_are_named_with_their_place(tmp_path: Path, bad: float) -> None:
    path = random_checkpoint(tmp_path / "c", tiny_config(hidden_size=300), 1, "FP8")
    name = "model.layers.0.mlp.down_proj.weight"
    info = Checkpoint.open(path).tensors[f"{name}_scale_inv"]
    data = bytearray(info.file.read_bytes())
    data[info.offset + 4 : info.offset + 8] = np.float32(bad).tobytes()
    info.file.write_bytes(data)
    checkpoint = Checkpoint.open(path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.float32(name)
    message = str(caught.value)
    assert f'tensor "{name}_scale_inv"[1, 0]: expected a positive, finite scale, got {bad}' in message
    assert str(info.file) in message


def test_a_file_that_shrinks_after_opening_is_noticed_before_it_is_mapped(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "c", tiny_config(), 1)
    checkpoint = Checkpoint.open(path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="the file has changed since it was opened"):
        checkpoint.array("lm_head.weight")
    file.unlink()
    with pytest.raises(CheckpointError, match="expected a readable file"):
        checkpoint.array("lm_head.weight")


def test_asking_for_an_unknown_tensor_is_a_bug(tiny_bf16: Path) -> None:
    with pytest.raises(InternalError, match=r"has no tensor model\.nothing"):
        Checkpoint.open(tiny_bf16).array("model.nothing")
