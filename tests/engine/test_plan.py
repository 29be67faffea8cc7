from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from dsv3export.checkpoint.header import read_header
from dsv3export.dtypes import NUMPY
from dsv3export.engine.plan import PlannedWeight, layout_shards
from dsv3export.errors import InternalError

WEIGHTS = st.lists(
    st.builds(
        lambda dtype, shape: (dtype, tuple(shape)),
        st.sampled_from(["F32", "U8", "BF16", "I8", "F8_E4M3", "I64"]),
        st.lists(st.integers(0, 5), max_size=3),
    ),
    max_size=12,
)


@given(WEIGHTS, st.integers(1, 200))
def test_every_weight_has_its_place(kinds: list[tuple[str, tuple[int, ...]]], limit: int) -> None:
    weights = [PlannedWeight(f"w{i}", dtype, shape, (), "") for i, (dtype, shape) in enumerate(kinds)]
    shards = layout_shards(weights, limit)
    assert sorted(weight.name for shard in shards for weight in shard.weights) == sorted(w.name for w in weights)
    for number, shard in enumerate(shards, start=1):
        assert shard.file == f"weights/model-{number:05d}.safetensors"
        assert len(shard.header) % 64 == 0
        assert len(shard.weights) == 1 or sum(weight.nbytes for weight in shard.weights) <= limit
        end = len(shard.header)
        for weight, offset in shard.offsets():
            assert offset == end and offset % NUMPY[weight.dtype].itemsize == 0
            end += weight.nbytes
        assert end == shard.size


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    weights = [
        PlannedWeight("a", "U8", (3,), (), ""),
        PlannedWeight("b", "F32", (2, 2), (), ""),
        PlannedWeight("c", "BF16", (), (), ""),
        PlannedWeight("empty", "F32", (0, 4), (), ""),
    ]
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "a": np.array([1, 2, 3], np.uint8),
        "b": np.array([[1.5, 2], [3, 4]], np.float32),
        "c": np.array(7, ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
    }
    (shard,) = layout_shards(weights)
    path = tmp_path / "x.safetensors"
    path.write_bytes(shard.header + b"".join(arrays[weight.name].tobytes() for weight in shard.weights))
    with safe_open(path, "numpy") as file:
        for name in ("a", "b", "empty"):
            assert np.array_equal(file.get_tensor(name), arrays[name])
    assert set(read_header(path).tensors) == {"a", "b", "c", "empty"}


def test_the_order_of_the_plan_is_kept_where_alignment_allows() -> None:
    def order(first_bytes: int) -> list[str]:
        others = [PlannedWeight(name, "F32", (8,), (), "") for name in "yx"]
        shards = layout_shards([PlannedWeight("z", "U8", (first_bytes,), (), ""), *others])
        return [weight.name for weight in shards[0].weights]

    assert order(8) == ["z", "y", "x"]
    assert order(7) == ["y", "x", "z"]


def test_two_weights_of_one_name_are_a_bug() -> None:
    with pytest.raises(InternalError, match="same name"):
        layout_shards([PlannedWeight("a", "U8", (1,), (), "")] * 2)
