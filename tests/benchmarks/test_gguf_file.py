"""GGUF files, read back by the gguf package, and run by llama.cpp against our own executor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="`make bench-setup` installs it")
llama_cpp = pytest.importorskip("llama_cpp", reason="`make bench-setup` installs it")

from benchmarks.gguf_file import quantise_gguf, types_in, write_gguf  # noqa: E402 - they need both packages
from benchmarks.gguf_layout import tensors  # noqa: E402
from benchmarks.llama_cpp_model import LlamaCppModel  # noqa: E402
from dsv3export.checkpoint import Checkpoint  # noqa: E402
from dsv3export.graphs import Executor  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tiny_bf16: Path) -> Checkpoint:
    return Checkpoint.open(tiny_bf16)


@pytest.fixture(scope="module")
def bf16(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(checkpoint, tmp_path_factory.mktemp("gguf") / "bf16.gguf", "BF16")


def test_a_written_file_reads_back_as_the_checkpoint(checkpoint: Checkpoint, bf16: Path) -> None:
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(bf16).tensors}
    expected = list(tensors(checkpoint.config))
    assert list(found) == [tensor.name for tensor in expected]
    for tensor in expected:
        stored = found[tensor.name]
        assert stored.tensor_type.name == ("F32" if tensor.exact else "BF16")
        values = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(tensor.shape)
        np.testing.assert_array_equal(values, tensor.value(checkpoint.float32))


def test_llama_cpp_computes_the_same_model(
    checkpoint: Checkpoint, tmp_path: Path, goldens: Callable[[str], Path]
) -> None:
    ids = [0, *json.loads((goldens("bf16").parent / "heldout_token_ids.json").read_text())[:199]]
    expected = Executor(checkpoint).logits(ids)
    model = LlamaCppModel(write_gguf(checkpoint, tmp_path / "f32.gguf", "F32"), 1, 256, float32_cache=True)
    found = model.logits(ids)
    # its exponential and its SiLU are approximations
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    first, *rest = model.stream(ids, 8)
    assert first == expected[-1].argmax()
    assert [first, *rest] == list(model.stream(ids, 8)), "the cache must be empty again for each stream"
    model.close()


@pytest.mark.parametrize(
    ("file_type", "head_type", "head", "others"),
    [("Q8_0", "Q8_0", "Q8_0", "Q8_0"), ("Q4_0", "Q8_0", "Q8_0", "Q4_0"), ("Q4_0", None, "Q6_K", "Q4_0")],
)
def test_quantised_files_have_the_types_that_are_reported(
    bf16: Path, tmp_path: Path, file_type: str, head_type: str | None, head: str, others: str
) -> None:
    found = types_in(quantise_gguf(bf16, tmp_path / "out.gguf", file_type, head_type=head_type))
    assert found.pop("output.weight") == head
    assert set(found.values()) == {others, "F32"}


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"not a model")
    with pytest.raises(RuntimeError, match="could not load"):
        LlamaCppModel(tmp_path / "none.gguf", 1, 16)
    with pytest.raises(RuntimeError, match="could not quantise"):
        quantise_gguf(tmp_path / "none.gguf", tmp_path / "out.gguf", "Q8_0")
