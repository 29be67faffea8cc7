"""Fused attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.graphs.tensorrt.layer_cases.case import Case, floats, out
from tests.graphs.tensorrt.small_network import Given


def _attention(name: str, mask: Tensor | None, dtype: torch.dtype, causal: str, expected: Any) -> Case:
    """Four heads over two heads of keys and values, five rows of them for three queries."""
    given = [
        Given(floats(2, 4, 3, 8, dtype=dtype), (0, 2)),
        Given(floats(2, 2, 5, 8, seed=1, dtype=dtype), (0, 2)),
        Given(floats(2, 2, 5, 8, seed=2, dtype=dtype), (0, 2)),
    ]
    masks = [] if mask is None else [Given(mask)]

    def define(trt: Any, network: Any, inputs: Any) -> list[Any]:
        kind = getattr(trt.CausalMaskKind, causal)
        layer = network.add_attention_v2(*inputs[:3], trt.AttentionNormalizationOp.SOFTMAX, kind)
        if mask is not None:
            layer.mask = inputs[3]
        layer.decomposable = True
        return out(layer)

    def attend(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> list[Tensor]:
        k, v = k.double().repeat_interleave(2, 1), v.double().repeat_interleave(2, 1)
        return [((q.double() @ k.mT + expected).softmax(-1) @ v).to(dtype)]

    return Case(f"attention {name} {dtype}", [*given, *masks], define, attend, 1e-6 if dtype == torch.float32 else 0.01)


_SEEN = torch.tensor([[True, False, True, True, False], [False, True, False, False, False], [True] * 5])
_HIDDEN = torch.where(_SEEN, 0.0, -torch.inf).double()
_ADDED = floats(1, 1, 3, 5, seed=3)

ATTENTION = [
    _attention("plain", None, torch.float32, "NONE", torch.zeros(3, 5)),
    _attention("masked", _SEEN.expand(1, 1, 3, 5).contiguous(), torch.float32, "NONE", _HIDDEN),
    _attention("masked", _SEEN.expand(1, 1, 3, 5).contiguous(), torch.bfloat16, "NONE", _HIDDEN),
    _attention("with an added mask", _ADDED, torch.float32, "NONE", _ADDED.double()),
    _attention("causal from the first", None, torch.float32, "UPPER_LEFT", torch.full((3, 5), -torch.inf).triu(1)),
    _attention("causal from the last", None, torch.float32, "LOWER_RIGHT", torch.full((3, 5), -torch.inf).triu(3)),
]
