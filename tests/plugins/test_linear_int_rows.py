"""A wide integer linear is multiplied some rows at a time: the same result."""

from __future__ import annotations

import pytest
import torch

from dsv3export.plugins import OPS
from dsv3export.plugins.linear_int import op


@pytest.mark.parametrize("with_zero_points", [False, True])
@pytest.mark.parametrize("at_once", [64, 200, 64 * 37])
def test_rows_at_a_time(with_zero_points: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 64, generator=generator)
    packed = torch.randint(0, 256, (37, 64), generator=generator, dtype=torch.uint8)
    scale = torch.rand(37, 2, generator=generator)
    zeros = torch.randint(0, 256, (37, 2), generator=generator, dtype=torch.uint8) if with_zero_points else None
    whole = OPS["LinearInt"].kernel(x, packed, scale, zeros, 8, 32, "int8")
    monkeypatch.setattr(op, "_DEQUANTISED_AT_ONCE", at_once)
    assert torch.allclose(OPS["LinearInt"].kernel(x, packed, scale, zeros, 8, 32, "int8"), whole, rtol=1e-5, atol=1e-3)
