"""What holds of replayed layers for any shape: reshapes, blocks, indices, order of evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsv3export.graphs.lower.tensorrt.replay_layers.memory import unpack_int4
from tests.graphs.tensorrt.small_network import Given, replayed

sizes = st.lists(st.integers(1, 5), min_size=2, max_size=4)


def _random(shape: list[int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=12)
@given(sizes, st.data())
def test_a_shuffle_is_numpys_transpose_reshape_transpose(shape: list[int], data: st.DataObject) -> None:
    first = data.draw(st.permutations(range(len(shape))))
    split = data.draw(st.integers(1, len(shape) - 1))
    second = data.draw(st.permutations(range(split + 1)))
    x = _random(shape)

    def define(trt: Any, network: Any, inputs: Any) -> list[Any]:
        layer = network.add_shuffle(inputs[0])
        layer.first_transpose = first
        layer.reshape_dims = (*[0] * split, -1)
        layer.second_transpose = second
        return [layer.get_output(0)]

    (actual,) = replayed(define, [Given(x)])

    transposed = x.numpy().transpose(first)
    assert np.array_equal(actual.numpy(), transposed.reshape(*transposed.shape[:split], -1).transpose(second))


@settings(max_examples=12)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([(128, 128), (1, 128), (64, 128)]), st.booleans())
def test_each_fp8_number_is_multiplied_by_its_blocks_scale(
    rows: int, columns: int, block: tuple[int, int], bank: bool
) -> None:
    blocks = (-(-rows // block[0]), -(-columns // block[1]))
    assume(bank or blocks != (1, 1))  # TensorRT takes one scale for all of a matrix, but not as a block's
    lead = [2] if bank else []
    weight = _random([*lead, rows, columns]).to(torch.float8_e4m3fn)
    scale = _random([*lead, *blocks], seed=1).abs() + 0.1

    def define(trt: Any, network: Any, inputs: Any) -> list[Any]:
        layer = network.add_dequantize(inputs[0], inputs[1], trt.float32)
        layer.block_shape = (1, *block) if bank else block
        return [layer.get_output(0)]

    (actual,) = replayed(define, [Given(weight), Given(scale)])

    row, column = np.indices((rows, columns))
    assert torch.equal(actual, weight.float() * scale[..., row // block[0], column // block[1]])


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=40).filter(lambda numbers: len(numbers) % 2 == 0))
def test_packed_int4_comes_back(numbers: list[int]) -> None:
    values = np.array(numbers, np.int8)
    packed = (values[0::2] & 15) | (values[1::2] << 4)

    assert unpack_int4(torch.from_numpy(packed.view(np.uint8))).tolist() == numbers


@settings(max_examples=12)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.data())
def test_a_cache_update_writes_its_rows_and_no_others(slots: int, rows: int, spare: int, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, spare)) for _ in range(slots)]
    cache, update = _random([slots, 1, rows + spare, 3]), _random([slots, 1, rows, 3], seed=1)
    before = cache.clone()

    (after,) = replayed(
        lambda t, n, x: [n.add_kv_cache_update(*x, t.KVCacheMode.LINEAR).get_output(0)],
        [Given(cache, (0,)), Given(update, (0, 2)), Given(torch.tensor(start, dtype=torch.int32), (0,))],
    )

    assert after.data_ptr() == cache.data_ptr()
    for slot, first in enumerate(start):
        assert torch.equal(after[slot, :, first : first + rows], update[slot])
        assert torch.equal(after[slot, :, :first], before[slot, :, :first])
        assert torch.equal(after[slot, :, first + rows :], before[slot, :, first + rows :])


@settings(max_examples=8)
@given(st.integers(2, 30))
def test_a_long_chain_is_evaluated_in_order(length: int) -> None:
    def define(trt: Any, network: Any, inputs: Any) -> list[Any]:
        a = b = inputs[0]
        for _ in range(length):
            a, b = network.add_elementwise(a, b, trt.ElementWiseOperation.SUM).get_output(0), a
        return [b, a]

    x = torch.ones(1, 1)
    previous, last = replayed(define, [Given(x)])

    fibonacci = [1, 1]
    for _ in range(length):
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert (previous.item(), last.item()) == (fibonacci[-2], fibonacci[-1])
