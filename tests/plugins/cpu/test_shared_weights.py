"""Packed weights of sessions in one process: one copy, of little more than the packed bytes, freed with the last."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.one_node import OneNode
from tests.plugins.cpu.packed_weights import PackedWeights, random_weights

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

COLUMNS, DEPTH, GROUP = 320, 1024, 32


def held() -> int:
    description = cpu_kernels.describe()
    assert description is not None
    return description.weight_bytes


def session(weights: PackedWeights, inputs: dict[str, NDArray[Any] | None], folder: Path) -> OneNode:
    attributes: dict[str, int | float | str] = {"K": DEPTH, "N": COLUMNS, "bits": weights.bits, "group": GROUP}
    return OneNode("LinearInt", {"x": np.zeros((1, DEPTH), np.float32)}, inputs, attributes, folder=folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_copy_as_long_as_it_is_used(bits: int, tmp_path: Path) -> None:
    before = held()
    weights = random_weights(np.random.default_rng(0), bits, GROUP, COLUMNS, DEPTH, zero_points=True)
    inputs = weights.inputs()
    first = session(weights, inputs, tmp_path)
    once = held() - before
    assert 0 < once <= 1.1 * sum(array.nbytes for array in inputs.values() if array is not None)
    second = session(weights, inputs, tmp_path)
    assert held() - before == once
    elsewhere = session(weights, copy.deepcopy(inputs), tmp_path)
    assert held() - before == 2 * once
    x = np.ones((1, DEPTH), np.float32)
    del first
    np.testing.assert_array_equal(second(x=x)[0], elsewhere(x=x)[0])
    del second, elsewhere
    assert held() == before


def test_sessions_that_are_opened_at_once_share_as_well(tmp_path: Path) -> None:
    before = held()
    weights = random_weights(np.random.default_rng(0), 8, GROUP, COLUMNS, DEPTH, zero_points=False)
    inputs = weights.inputs()
    with ThreadPoolExecutor(4) as pool:
        sessions = list(pool.map(lambda _: session(weights, inputs, tmp_path), range(8)))
        once = held() - before
        assert 0 < once <= 1.1 * sum(array.nbytes for array in inputs.values() if array is not None)
        x = np.random.default_rng(1).standard_normal((3, DEPTH), np.float32)
        results = list(pool.map(lambda one: one(x=x)[0], sessions * 4))
    assert all(np.array_equal(result, results[0]) for result in results)
    sessions.clear()
    assert held() == before
