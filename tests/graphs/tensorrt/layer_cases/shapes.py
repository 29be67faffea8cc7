"""Shapes and slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.graphs.tensorrt.layer_cases.case import Case, assigned, floats, out
from tests.graphs.tensorrt.small_network import Given, constant

_X = floats(2, 3, 4)


def _dynamic_reshape(trt: Any, network: Any, x: Any) -> list[Any]:
    """[A, 3, 4] -> [A * 3, 4], by a computed shape."""
    shape = network.add_shape(x).get_output(0)
    rows = network.add_slice(shape, (0,), (1,), (1,)).get_output(0)
    three = constant(trt, network, [3], np.int64)
    first = network.add_elementwise(rows, three, trt.ElementWiseOperation.PROD).get_output(0)
    target = network.add_concatenation([first, constant(trt, network, [4], np.int64)]).get_output(0)
    shuffle = network.add_shuffle(x)
    shuffle.set_input(1, target)
    return out(shuffle)


def _dynamic_slice(trt: Any, network: Any, x: Any) -> list[Any]:
    """[A, 3, 4] from index A - 1 on its second axis on."""
    layer = network.add_slice(x, (0, 0, 0), (2, 2, 4), (1, 1, 1))
    rows = network.add_slice(network.add_shape(x).get_output(0), (0,), (1,), (1,)).get_output(0)
    one, zero = constant(trt, network, [1], np.int64), constant(trt, network, [0], np.int64)
    start = network.add_elementwise(rows, one, trt.ElementWiseOperation.SUB).get_output(0)
    layer.set_input(1, network.add_concatenation([zero, start, zero]).get_output(0))
    return out(layer)


def _slice(mode: str, start: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...], read: Any) -> Case:
    return Case(
        f"slice {mode} {start} {size} {stride}",
        [Given(torch.arange(5, dtype=torch.float32))],
        lambda t, n, x: assigned(n.add_slice(x[0], start, size, stride), mode=getattr(t.SampleMode, mode)),
        lambda x: [torch.tensor(read, dtype=torch.float32)],
    )


SHAPES = [
    Case(
        "shuffle: both transposes, 0 and -1",
        [Given(_X)],
        lambda t, n, x: assigned(
            n.add_shuffle(x[0]), first_transpose=(2, 0, 1), reshape_dims=(0, -1), second_transpose=(1, 0)
        ),
        lambda x: [torch.from_numpy(x.numpy().transpose(2, 0, 1).reshape(4, 6).T.copy())],
    ),
    Case(
        "shuffle: transpose of a dynamic axis",
        [Given(_X, (0,))],
        lambda t, n, x: assigned(n.add_shuffle(x[0]), second_transpose=t.Permutation([1, 2, 0])),
        lambda x: [x.permute(1, 2, 0)],
    ),
    Case(
        "shuffle: computed shape",
        [Given(_X, (0,))],
        lambda t, n, x: _dynamic_reshape(t, n, x[0]),
        lambda x: [x.reshape(6, 4)],
    ),
    Case(
        "shape",
        [Given(_X, (0, 1))],
        lambda t, n, x: out(n.add_shape(x[0])),
        lambda x: [torch.tensor([2, 3, 4])],
    ),
    Case(
        "slice: computed start",
        [Given(_X, (0,))],
        lambda t, n, x: _dynamic_slice(t, n, x[0]),
        lambda x: [x[:, 1:3]],
    ),
    Case(
        "slice with strides",
        [Given(_X)],
        lambda t, n, x: out(n.add_slice(x[0], (0, 2, 1), (2, 2, 2), (1, -1, 2))),
        lambda x: [torch.from_numpy(x.numpy()[:, 2:0:-1, 1::2].copy())],
    ),
    _slice("WRAP", (3,), (5,), (1,), [3, 4, 0, 1, 2]),
    _slice("CLAMP", (-2,), (6,), (1,), [0, 0, 0, 1, 2, 3]),
    _slice("FILL", (-1,), (7,), (1,), [0, 0, 1, 2, 3, 4, 0]),
    _slice("REFLECT", (-2,), (9,), (1,), [2, 1, 0, 1, 2, 3, 4, 3, 2]),
    Case(
        "concatenation, on the default axis",
        [Given(floats(2, 3, 4)), Given(floats(5, 3, 4, seed=1))],
        lambda t, n, x: out(n.add_concatenation(x)),
        lambda a, b: [torch.cat([a, b])],
    ),
    Case(
        "concatenation, on a given axis",
        [Given(floats(2, 3, 4), (0,)), Given(floats(2, 3, 2, seed=1), (0,))],
        lambda t, n, x: assigned(n.add_concatenation(x), axis=2),
        lambda a, b: [torch.cat([a, b], 2)],
    ),
    Case(
        "squeeze and unsqueeze",
        [Given(floats(2, 1, 4), (0,))],
        lambda t, n, x: [
            n.add_squeeze(x[0], constant(t, n, [1], np.int64)).get_output(0),
            n.add_unsqueeze(x[0], constant(t, n, [0, 4], np.int64)).get_output(0),
        ],
        lambda x: [x[:, 0], x[None, ..., None]],
    ),
]
