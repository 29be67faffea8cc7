"""Gather, scatter, the largest, the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.graphs.tensorrt.layer_cases.case import Case, assigned, both, floats, integers, out
from tests.graphs.tensorrt.small_network import Given, constant

_X = floats(2, 3, 4)
_INDEX = integers(3, 2, 5)


def _gather(mode: str, data: Tensor, index: Tensor, expected: Any, **attributes: Any) -> Case:
    return Case(
        f"gather {mode} {attributes}",
        [Given(data), Given(index)],
        lambda t, n, x: assigned(n.add_gather_v2(x[0], x[1], getattr(t.GatherMode, mode)), **attributes),
        lambda data, index: [torch.from_numpy(np.ascontiguousarray(expected(data.numpy(), index.numpy())))],
    )


def _scatter(mode: str, data: Tensor, index: Tensor, updates: Tensor, expected: Any, **attributes: Any) -> Case:
    return Case(
        f"scatter {mode} {attributes}",
        [Given(data), Given(index), Given(updates)],
        lambda t, n, x: assigned(n.add_scatter(*x, getattr(t.ScatterMode, mode)), **attributes),
        lambda data, index, updates: [expected(data.clone(), index.long(), updates)],
    )


def _put_nd(data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    for place, update in zip(index.tolist(), updates, strict=True):
        data[tuple(place)] = update
    return data


def _put_along(data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    array = data.numpy()
    np.put_along_axis(array, index.numpy(), updates.numpy(), 1)
    return torch.from_numpy(array)


_CACHE, _UPDATE = floats(3, 1, 7, 4), floats(3, 1, 2, 4, seed=1)
_START = torch.tensor([0, 5, 3], dtype=torch.int32)


def _cache_after(cache: Tensor, update: Tensor, start: Tensor) -> Tensor:
    expected = cache.clone()
    for slot, first in enumerate(start.tolist()):
        for row in range(update.shape[2]):
            expected[slot, 0, first + row] = update[slot, 0, row]
    return expected


INDEXING = [
    _gather("DEFAULT", _X, _INDEX, lambda d, i: np.take(d, i, 1), axis=1),
    _gather(
        "DEFAULT",
        floats(3, 4),
        integers(4, 3, 2),
        lambda d, i: np.take_along_axis(d, i, 1),
        axis=1,
        num_elementwise_dims=1,
    ),
    _gather("ELEMENT", floats(3, 4), integers(4, 3, 2), lambda d, i: np.take_along_axis(d, i, 1), axis=1),
    _gather("ND", _X, integers(2, 5, 2), lambda d, i: d[i[:, 0], i[:, 1]]),
    _gather("ND", _X, integers(3, 2, 1), lambda d, i: d[np.arange(2), i[:, 0]], num_elementwise_dims=1),
    Case(
        "gather of a dynamic number of rows",
        [Given(floats(6, 4)), Given(integers(6, 5), (0,))],
        lambda t, n, x: out(n.add_gather(x[0], x[1], 0)),
        lambda data, index: [data[index.long()]],
    ),
    _scatter("ND", floats(4, 3), torch.tensor([[2], [0]], dtype=torch.int32), floats(2, 3, seed=1), _put_nd),
    _scatter(
        "ELEMENT",
        floats(2, 5),
        torch.tensor([[4, 0], [1, 2]], dtype=torch.int32),
        floats(2, 2, seed=1),
        _put_along,
        axis=1,
    ),
    Case(
        "top-k, largest",
        [Given(floats(3, 7), (0,))],
        lambda t, n, x: both(n.add_topk(x[0], t.TopKOperation.MAX, 3, 2)),
        lambda x: [
            torch.from_numpy(-np.sort(-x.numpy())[:, :3]),
            torch.from_numpy(np.argsort(-x.numpy())[:, :3].astype(np.int32)),
        ],
    ),
    Case(
        "top-k, smallest, 64-bit indices, another axis",
        [Given(floats(7, 3))],
        lambda t, n, x: both(n.add_topk(x[0], t.TopKOperation.MIN, 2, 1, t.int64)),
        lambda x: [x.sort(0).values[:2], x.sort(0).indices[:2]],
    ),
    Case(
        "one-hot",
        [Given(integers(5, 2, 3))],
        lambda t, n, x: out(n.add_one_hot(x[0], constant(t, n, [0.5, 2.0]), constant(t, n, 5, np.int32), -1)),
        lambda i: [torch.nn.functional.one_hot(i.long(), 5).float() * 1.5 + 0.5],
    ),
    Case(
        "cache update",
        [Given(_CACHE, (0,)), Given(_UPDATE, (0, 2)), Given(_START, (0,))],
        lambda t, n, x: out(n.add_kv_cache_update(*x, t.KVCacheMode.LINEAR)),
        lambda cache, update, start: [_cache_after(cache, update, start)],
    ),
]
