from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsv3export.graphs.quantise import pack, pack_zero_points, unpack

BITS = st.sampled_from([4, 8])


@st.composite
def _numbers(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bits = draw(BITS)
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=70))
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1))), bits


@given(_numbers(), st.sampled_from([16, 32, 64, 128]))
def test_unpacking_gives_back_every_number(case: tuple[np.ndarray, int], group: int) -> None:
    numbers, bits = case
    width = numbers.shape[-1]
    packed = pack(numbers, bits, group)
    assert packed.shape == (*numbers.shape[:-1], -(-width // group) * group * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, width), numbers)


@given(_numbers())
def test_unpacking_gives_back_every_zero_point(case: tuple[np.ndarray, int]) -> None:
    zero_points, bits = case
    groups = zero_points.shape[-1]
    packed = pack_zero_points(zero_points, bits)
    assert packed.shape[-1] == -(-groups * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, groups), zero_points)


def test_the_even_number_is_the_low_half_of_a_byte() -> None:
    assert pack(np.array([[1, 2, 15, 0]], np.uint8), 4, None).tolist() == [[0x21, 0x0F]]


@pytest.mark.parametrize(("bits", "filling"), [(4, 0x88), (8, 0x80)])
def test_a_cut_group_is_filled_up_with_zeros(bits: int, filling: int) -> None:
    packed = pack(np.zeros((1, 16), np.uint8), bits, 32)
    assert set(packed[0, 16 * bits // 8 :].tolist()) == {filling}
