from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.runtime.logprobs import token_logprobs


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.integers(0, 50), st.data())
def test_they_are_torch_s(values: list[float], count: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(values) - 1))
    found = token_logprobs(np.array(values, np.float32), token, count)
    expected = torch.log_softmax(torch.tensor(values, dtype=torch.float64), 0)
    assert found.logprob == pytest.approx(expected[token].item(), abs=1e-9)
    assert len(found.top) == min(count, len(values))
    for each, value in found.top:
        assert value == pytest.approx(expected[each].item(), abs=1e-9)
    ranked = sorted(range(len(values)), key=lambda i: (-expected[i].item(), i))
    assert [value for _, value in found.top] == pytest.approx([expected[i].item() for i in ranked[:count]], abs=1e-9)
