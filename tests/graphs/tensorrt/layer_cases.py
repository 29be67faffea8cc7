"""One row for each layer that is replayed: a network of that layer, inputs, and what numpy or torch makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.graphs.tensorrt.small_network import Define, Given, constant


@dataclass(frozen=True)
class Case:
    """`expected` are the outputs, exact unless `tolerance` is given (relative to the largest)."""

    name: str
    inputs: Sequence[Given]
    define: Define
    expected: Callable[..., Sequence[Tensor]]
    tolerance: float = 0.0


def _floats(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _integers(high: int, *shape: int, seed: int = 0, low: int = 0, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _out(layer: Any) -> list[Any]:
    return [layer.get_output(0)]


def _set(layer: Any, **attributes: Any) -> list[Any]:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return _out(layer)


def _elementwise(op: str, a: Tensor, b: Tensor, expected: Callable[[Tensor, Tensor], Tensor]) -> Case:
    return Case(
        f"elementwise {op} {a.dtype}",
        [Given(a, (0,)), Given(b)],
        lambda t, n, x: _out(n.add_elementwise(x[0], x[1], getattr(t.ElementWiseOperation, op))),
        lambda a, b: [expected(a, b)],
    )


def _unary(op: str, expected: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Case:
    return Case(
        f"unary {op}",
        [Given(_floats(3, 5) if x is None else x, (0,))],
        lambda t, n, x: _out(n.add_unary(x[0], getattr(t.UnaryOperation, op))),
        lambda x: [expected(x)],
    )


def _activation(kind: str, expected: Callable[[Tensor], Tensor], **attributes: float) -> Case:
    return Case(
        f"activation {kind}",
        [Given(_floats(4, 6), (0,))],
        lambda t, n, x: _set(n.add_activation(x[0], getattr(t.ActivationType, kind)), **attributes),
        lambda x: [expected(x)],
        1e-6,
    )


_BF16_BITS = np.array([0x3F80, 0xC000, 0x3F00], np.uint16)  # 1, -2 and 0.5
_A, _B = _floats(4, 3), _floats(1, 3, seed=1)
_I, _J = _integers(9, 4, 3, low=-8), _integers(9, 1, 3, low=2, seed=1)
_P, _Q = _integers(2, 4, 3, dtype=torch.bool), _integers(2, 1, 3, seed=1, dtype=torch.bool)

POINTWISE = [
    _elementwise("SUM", _A, _B, torch.add),
    _elementwise("SUM", _A.bfloat16(), _B.bfloat16(), lambda a, b: (a.double() + b.double()).bfloat16()),
    _elementwise("PROD", _A.half(), _B.half(), lambda a, b: (a.double() * b.double()).half()),
    _elementwise("SUB", _I, _J, torch.sub),
    _elementwise("DIV", _A, _B, torch.div),
    _elementwise("DIV", _I, _J, lambda a, b: torch.from_numpy(np.trunc(a.numpy() / b.numpy()).astype(np.int32))),
    _elementwise("FLOOR_DIV", _I, _J, lambda a, b: torch.from_numpy(a.numpy() // b.numpy())),
    _elementwise("MAX", _A, _B, torch.maximum),
    _elementwise("MIN", _I, _J, torch.minimum),
    _elementwise("POW", _A.abs(), _B, torch.pow),
    _elementwise("EQUAL", _I, _J, torch.eq),
    _elementwise("GREATER", _A, _B, torch.gt),
    _elementwise("LESS", _I.long(), _J.long(), torch.lt),
    _elementwise("AND", _P, _Q, lambda a, b: a & b),
    _elementwise("OR", _P, _Q, lambda a, b: a | b),
    _elementwise("XOR", _P, _Q, lambda a, b: a ^ b),
    _unary("EXP", torch.exp),
    _unary("EXP", lambda x: x.double().exp().bfloat16(), _floats(3, 5).bfloat16()),
    _unary("LOG", torch.log, _floats(3, 5).abs()),
    _unary("SQRT", torch.sqrt, _floats(3, 5).abs()),
    _unary("RECIP", torch.reciprocal),
    _unary("ABS", torch.abs, _I),
    _unary("NEG", torch.neg),
    _unary("SIN", torch.sin),
    _unary("COS", torch.cos),
    _unary("CEIL", torch.ceil),
    _unary("FLOOR", torch.floor),
    _unary("ERF", torch.erf),
    _unary("NOT", torch.logical_not, _P),
    _unary("SIGN", torch.sign),
    _unary("ROUND", lambda x: torch.from_numpy(np.rint(x.numpy())), torch.tensor([[-2.5, -1.5, 0.5, 1.5, 2.5]])),
    _activation("RELU", lambda x: x.clamp(min=0)),
    _activation("SIGMOID", lambda x: 1 / (1 + (-x).exp())),
    _activation("TANH", torch.tanh),
    _activation("CLIP", lambda x: x.clamp(-0.25, 0.5), alpha=-0.25, beta=0.5),
    _activation("LEAKY_RELU", lambda x: torch.where(x > 0, x, 0.1 * x), alpha=0.1),
    _activation("SOFTPLUS", lambda x: 2 * (3 * x).exp().log1p(), alpha=2.0, beta=3.0),
    _activation("HARD_SIGMOID", lambda x: (0.2 * x + 0.5).clamp(0, 1), alpha=0.2, beta=0.5),
    _activation("GELU_ERF", lambda x: x * 0.5 * (1 + (x / 2**0.5).erf())),
    Case(
        "activation SIGMOID bfloat16",
        [Given(_floats(4, 6, dtype=torch.bfloat16))],
        lambda t, n, x: _out(n.add_activation(x[0], t.ActivationType.SIGMOID)),
        lambda x: [(1 / (1 + (-x.double()).exp())).bfloat16()],
    ),
    Case(
        "cast float to int truncates",
        [Given(torch.tensor([-1.7, -0.2, 0.9, 3.5]))],
        lambda t, n, x: _out(n.add_cast(x[0], t.int32)),
        lambda x: [torch.tensor([-1, 0, 0, 3], dtype=torch.int32)],
    ),
    Case(
        "cast float to bfloat16 rounds to even",
        [Given(torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.3]))],
        lambda t, n, x: _out(n.add_cast(x[0], t.bfloat16)),
        lambda x: [torch.tensor([1.0, 1.0, 1 + 2**-6, -3.296875], dtype=torch.bfloat16)],
    ),
    Case(
        "select",
        [Given(_P, (0,)), Given(_A, (0,)), Given(_B)],
        lambda t, n, x: _out(n.add_select(*x)),
        lambda p, a, b: [torch.from_numpy(np.where(p, a, b))],
    ),
    Case(
        "identity and constant",
        [Given(_A)],
        lambda t, n, x: [n.add_identity(x[0]).get_output(0), constant(t, n, [[1.5, -2.0]])],
        lambda a: [a, torch.tensor([[1.5, -2.0]])],
    ),
    Case(
        "constant of bytes at an address",
        [Given(_A.bfloat16())],
        lambda t, n, x: _out(n.add_constant((3,), t.Weights(t.bfloat16, _BF16_BITS.ctypes.data, 3))),
        lambda a: [torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)],
    ),
    Case(
        "fill with steps",
        [Given(_A)],
        lambda t, n, x: _set(n.add_fill((4,), t.FillOperation.LINSPACE, t.float32), alpha=1.0, beta=0.5),
        lambda a: [torch.tensor([1.0, 1.5, 2.0, 2.5])],
    ),
    Case(
        "fill of a dynamic shape",
        [Given(_A, (0,))],
        lambda t, n, x: _dynamic_fill(t, n, x[0]),
        lambda a: [torch.arange(4, dtype=torch.int64) * 3 + 2],
    ),
]


def _dynamic_fill(trt: Any, network: Any, x: Any) -> list[Any]:
    """2, 5, 8, ... as many as x has rows."""
    rows = network.add_slice(network.add_shape(x).get_output(0), (0,), (1,), (1,)).get_output(0)
    fill = network.add_fill((1,), trt.FillOperation.LINSPACE, trt.int64)
    fill.set_input(0, rows)
    fill.set_input(1, constant(trt, network, 2, np.int64))
    fill.set_input(2, constant(trt, network, [3], np.int64))
    return _out(fill)


_X = _floats(2, 3, 4)


def _dynamic_reshape(trt: Any, network: Any, x: Any) -> list[Any]:
    """[A, 3, 4] -> [A * 3, 4], by a computed shape."""
    shape = network.add_shape(x).get_output(0)
    rows = network.add_slice(shape, (0,), (1,), (1,)).get_output(0)
    three = constant(trt, network, [3], np.int64)
    first = network.add_elementwise(rows, three, trt.ElementWiseOperation.PROD).get_output(0)
    target = network.add_concatenation([first, constant(trt, network, [4], np.int64)]).get_output(0)
    shuffle = network.add_shuffle(x)
    shuffle.set_input(1, target)
    return _out(shuffle)


def _dynamic_slice(trt: Any, network: Any, x: Any) -> list[Any]:
    """[A, 3, 4] from index A - 1 on its second axis on."""
    layer = network.add_slice(x, (0, 0, 0), (2, 2, 4), (1, 1, 1))
    rows = network.add_slice(network.add_shape(x).get_output(0), (0,), (1,), (1,)).get_output(0)
    one, zero = constant(trt, network, [1], np.int64), constant(trt, network, [0], np.int64)
    start = network.add_elementwise(rows, one, trt.ElementWiseOperation.SUB).get_output(0)
    layer.set_input(1, network.add_concatenation([zero, start, zero]).get_output(0))
    return _out(layer)


def _slice(mode: str, start: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...], read: Any) -> Case:
    return Case(
        f"slice {mode} {start} {size} {stride}",
        [Given(torch.arange(5, dtype=torch.float32))],
        lambda t, n, x: _set(n.add_slice(x[0], start, size, stride), mode=getattr(t.SampleMode, mode)),
        lambda x: [torch.tensor(read, dtype=torch.float32)],
    )


SHAPES = [
    Case(
        "shuffle: both transposes, 0 and -1",
        [Given(_X)],
        lambda t, n, x: _set(
            n.add_shuffle(x[0]), first_transpose=(2, 0, 1), reshape_dims=(0, -1), second_transpose=(1, 0)
        ),
        lambda x: [torch.from_numpy(x.numpy().transpose(2, 0, 1).reshape(4, 6).T.copy())],
    ),
    Case(
        "shuffle: transpose of a dynamic axis",
        [Given(_X, (0,))],
        lambda t, n, x: _set(n.add_shuffle(x[0]), second_transpose=t.Permutation([1, 2, 0])),
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
        lambda t, n, x: _out(n.add_shape(x[0])),
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
        lambda t, n, x: _out(n.add_slice(x[0], (0, 2, 1), (2, 2, 2), (1, -1, 2))),
        lambda x: [torch.from_numpy(x.numpy()[:, 2:0:-1, 1::2].copy())],
    ),
    _slice("WRAP", (3,), (5,), (1,), [3, 4, 0, 1, 2]),
    _slice("CLAMP", (-2,), (6,), (1,), [0, 0, 0, 1, 2, 3]),
    _slice("FILL", (-1,), (7,), (1,), [0, 0, 1, 2, 3, 4, 0]),
    _slice("REFLECT", (-2,), (9,), (1,), [2, 1, 0, 1, 2, 3, 4, 3, 2]),
    Case(
        "concatenation, on the default axis",
        [Given(_floats(2, 3, 4)), Given(_floats(5, 3, 4, seed=1))],
        lambda t, n, x: _out(n.add_concatenation(x)),
        lambda a, b: [torch.cat([a, b])],
    ),
    Case(
        "concatenation, on a given axis",
        [Given(_floats(2, 3, 4), (0,)), Given(_floats(2, 3, 2, seed=1), (0,))],
        lambda t, n, x: _set(n.add_concatenation(x), axis=2),
        lambda a, b: [torch.cat([a, b], 2)],
    ),
    Case(
        "squeeze and unsqueeze",
        [Given(_floats(2, 1, 4), (0,))],
        lambda t, n, x: [
            n.add_squeeze(x[0], constant(t, n, [1], np.int64)).get_output(0),
            n.add_unsqueeze(x[0], constant(t, n, [0, 4], np.int64)).get_output(0),
        ],
        lambda x: [x[:, 0], x[None, ..., None]],
    ),
]

_INDEX = _integers(3, 2, 5)


def _gather(mode: str, data: Tensor, index: Tensor, expected: Any, **attributes: Any) -> Case:
    return Case(
        f"gather {mode} {attributes}",
        [Given(data), Given(index)],
        lambda t, n, x: _set(n.add_gather_v2(x[0], x[1], getattr(t.GatherMode, mode)), **attributes),
        lambda data, index: [torch.from_numpy(np.ascontiguousarray(expected(data.numpy(), index.numpy())))],
    )


def _scatter(mode: str, data: Tensor, index: Tensor, updates: Tensor, expected: Any, **attributes: Any) -> Case:
    return Case(
        f"scatter {mode} {attributes}",
        [Given(data), Given(index), Given(updates)],
        lambda t, n, x: _set(n.add_scatter(*x, getattr(t.ScatterMode, mode)), **attributes),
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


_CACHE, _UPDATE = _floats(3, 1, 7, 4), _floats(3, 1, 2, 4, seed=1)
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
        _floats(3, 4),
        _integers(4, 3, 2),
        lambda d, i: np.take_along_axis(d, i, 1),
        axis=1,
        num_elementwise_dims=1,
    ),
    _gather("ELEMENT", _floats(3, 4), _integers(4, 3, 2), lambda d, i: np.take_along_axis(d, i, 1), axis=1),
    _gather("ND", _X, _integers(2, 5, 2), lambda d, i: d[i[:, 0], i[:, 1]]),
    _gather("ND", _X, _integers(3, 2, 1), lambda d, i: d[np.arange(2), i[:, 0]], num_elementwise_dims=1),
    Case(
        "gather of a dynamic number of rows",
        [Given(_floats(6, 4)), Given(_integers(6, 5), (0,))],
        lambda t, n, x: _out(n.add_gather(x[0], x[1], 0)),
        lambda data, index: [data[index.long()]],
    ),
    _scatter("ND", _floats(4, 3), torch.tensor([[2], [0]], dtype=torch.int32), _floats(2, 3, seed=1), _put_nd),
    _scatter(
        "ELEMENT",
        _floats(2, 5),
        torch.tensor([[4, 0], [1, 2]], dtype=torch.int32),
        _floats(2, 2, seed=1),
        _put_along,
        axis=1,
    ),
    Case(
        "top-k, largest",
        [Given(_floats(3, 7), (0,))],
        lambda t, n, x: _both(n.add_topk(x[0], t.TopKOperation.MAX, 3, 2)),
        lambda x: [
            torch.from_numpy(-np.sort(-x.numpy())[:, :3]),
            torch.from_numpy(np.argsort(-x.numpy())[:, :3].astype(np.int32)),
        ],
    ),
    Case(
        "top-k, smallest, 64-bit indices, another axis",
        [Given(_floats(7, 3))],
        lambda t, n, x: _both(n.add_topk(x[0], t.TopKOperation.MIN, 2, 1, t.int64)),
        lambda x: [x.sort(0).values[:2], x.sort(0).indices[:2]],
    ),
    Case(
        "one-hot",
        [Given(_integers(5, 2, 3))],
        lambda t, n, x: _out(n.add_one_hot(x[0], constant(t, n, [0.5, 2.0]), constant(t, n, 5, np.int32), -1)),
        lambda i: [torch.nn.functional.one_hot(i.long(), 5).float() * 1.5 + 0.5],
    ),
    Case(
        "cache update",
        [Given(_CACHE, (0,)), Given(_UPDATE, (0, 2)), Given(_START, (0,))],
        lambda t, n, x: _out(n.add_kv_cache_update(*x, t.KVCacheMode.LINEAR)),
        lambda cache, update, start: [_cache_after(cache, update, start)],
    ),
]


def _both(layer: Any) -> list[Any]:
    return [layer.get_output(0), layer.get_output(1)]


def _product(name: str, a: Tensor, b: Tensor, ops: tuple[str, str], equation: str, tolerance: float = 1e-6) -> Case:
    return Case(
        f"matrix multiply {name} {a.dtype}",
        [Given(a, (0,)), Given(b)],
        lambda t, n, x: _out(
            n.add_matrix_multiply(x[0], getattr(t.MatrixOperation, ops[0]), x[1], getattr(t.MatrixOperation, ops[1]))
        ),
        lambda a, b: [torch.einsum(equation, a.double(), b.double()).to(a.dtype)],
        tolerance,
    )


def _reduce(op: str, axes: tuple[int, ...], keep: bool, expected: Any, dtype: torch.dtype = torch.float32) -> Case:
    return Case(
        f"reduce {op} {axes} {keep} {dtype}",
        [Given(_floats(3, 4, 5, dtype=dtype), (0,))],
        lambda t, n, x: _out(n.add_reduce(x[0], getattr(t.ReduceOperation, op), sum(1 << a for a in axes), keep)),
        lambda x: [torch.from_numpy(expected(x.double().numpy(), axis=axes, keepdims=keep)).to(dtype)],
        1e-6,
    )


def _cumulative(exclusive: bool, reverse: bool, expected: Any) -> Case:
    return Case(
        f"cumulative exclusive={exclusive} reverse={reverse}",
        [Given(_integers(9, 2, 4), (0,))],
        lambda t, n, x: _out(
            n.add_cumulative(x[0], constant(t, n, 1, np.int32), t.CumulativeOperation.SUM, exclusive, reverse)
        ),
        lambda x: [torch.tensor([expected(row) for row in x.tolist()], dtype=torch.int32)],
    )


ARITHMETIC = [
    _product("plain", _floats(4, 7), _floats(7, 3, seed=1), ("NONE", "NONE"), "mk,kn->mn"),
    _product("transposed", _floats(7, 4), _floats(3, 7, seed=1), ("TRANSPOSE", "TRANSPOSE"), "km,nk->mn"),
    _product("broadcast batch", _floats(2, 4, 7), _floats(1, 3, 7, seed=1), ("NONE", "TRANSPOSE"), "bmk,cnk->bmn"),
    _product("by a vector", _floats(2, 4, 7), _floats(2, 7, seed=1), ("NONE", "VECTOR"), "bmk,bk->bm"),
    _product("vectors", _floats(2, 7), _floats(2, 7, seed=1), ("VECTOR", "VECTOR"), "bk,bk->b"),
    _product("narrow", _floats(4, 300).bfloat16(), _floats(300, 3, seed=1).bfloat16(), ("NONE", "NONE"), "mk,kn->mn"),
    _product("narrow", _floats(4, 300).half(), _floats(3, 300, seed=1).half(), ("NONE", "TRANSPOSE"), "mk,nk->mn"),
    _reduce("SUM", (2,), True, np.sum),
    _reduce("AVG", (1, 2), False, np.mean),
    _reduce("MAX", (0,), False, np.max),
    _reduce("MIN", (0, 2), True, np.min),
    _reduce("PROD", (1, 2), False, np.prod),
    _reduce("SUM", (1, 2), False, np.sum, torch.bfloat16),
    Case(
        "softmax, on a given axis",
        [Given(_floats(2, 3, 4, 5), (0,))],
        lambda t, n, x: _set(n.add_softmax(x[0]), axes=1 << 3),
        lambda x: [x.double().softmax(3).float()],
        1e-6,
    ),
    Case(
        "softmax, on the default axis, narrow",
        [Given(_floats(2, 3, 4, 5, dtype=torch.bfloat16))],
        lambda t, n, x: _out(n.add_softmax(x[0])),
        lambda x: [x.double().softmax(1).bfloat16()],
    ),
    _cumulative(False, False, lambda row: [sum(row[: i + 1]) for i in range(len(row))]),
    _cumulative(True, False, lambda row: [sum(row[:i]) for i in range(len(row))]),
    _cumulative(False, True, lambda row: [sum(row[i:]) for i in range(len(row))]),
    _cumulative(True, True, lambda row: [sum(row[i + 1 :]) for i in range(len(row))]),
    Case(
        "normalisation",
        [Given(_floats(3, 8), (0,))],
        lambda t, n, x: _set(
            n.add_normalization_v2(x[0], constant(t, n, [[2.0] * 8]), constant(t, n, [[0.5] * 8]), 2), epsilon=1e-6
        ),
        lambda x: [torch.nn.functional.layer_norm(x.double(), (8,), eps=1e-6).float() * 2 + 0.5],
        1e-6,
    ),
    Case(
        "einsum",
        [Given(_floats(3, 4), (0,)), Given(_floats(4, 5, seed=1))],
        lambda t, n, x: _out(n.add_einsum(x, "ij,jk->ik")),
        lambda a, b: [(a.double() @ b.double()).float()],
        1e-6,
    ),
]


def _attention(name: str, mask: Tensor | None, dtype: torch.dtype, causal: str, expected: Any) -> Case:
    """Four heads over two heads of keys and values, five rows of them for three queries."""
    given = [
        Given(_floats(2, 4, 3, 8, dtype=dtype), (0, 2)),
        Given(_floats(2, 2, 5, 8, seed=1, dtype=dtype), (0, 2)),
        Given(_floats(2, 2, 5, 8, seed=2, dtype=dtype), (0, 2)),
    ]
    masks = [] if mask is None else [Given(mask)]

    def define(trt: Any, network: Any, inputs: Any) -> list[Any]:
        kind = getattr(trt.CausalMaskKind, causal)
        layer = network.add_attention_v2(*inputs[:3], trt.AttentionNormalizationOp.SOFTMAX, kind)
        if mask is not None:
            layer.mask = inputs[3]
        layer.decomposable = True
        return _out(layer)

    def attend(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> list[Tensor]:
        k, v = k.double().repeat_interleave(2, 1), v.double().repeat_interleave(2, 1)
        return [((q.double() @ k.mT + expected).softmax(-1) @ v).to(dtype)]

    return Case(f"attention {name} {dtype}", [*given, *masks], define, attend, 1e-6 if dtype == torch.float32 else 0.01)


_SEEN = torch.tensor([[True, False, True, True, False], [False, True, False, False, False], [True] * 5])
_HIDDEN = torch.where(_SEEN, 0.0, -torch.inf).double()
_ADDED = _floats(1, 1, 3, 5, seed=3)

ATTENTION = [
    _attention("plain", None, torch.float32, "NONE", torch.zeros(3, 5)),
    _attention("masked", _SEEN.expand(1, 1, 3, 5).contiguous(), torch.float32, "NONE", _HIDDEN),
    _attention("masked", _SEEN.expand(1, 1, 3, 5).contiguous(), torch.bfloat16, "NONE", _HIDDEN),
    _attention("with an added mask", _ADDED, torch.float32, "NONE", _ADDED.double()),
    _attention("causal from the first", None, torch.float32, "UPPER_LEFT", torch.full((3, 5), -torch.inf).triu(1)),
    _attention("causal from the last", None, torch.float32, "LOWER_RIGHT", torch.full((3, 5), -torch.inf).triu(3)),
]


def _blocks(scale: Tensor, shape: torch.Size, block: tuple[int, ...]) -> Tensor:
    """The scale of each element, one element at a time."""
    grid = np.indices(shape)
    return scale[tuple(torch.from_numpy(index // size) for index, size in zip(grid, block, strict=True))]


_FP8 = _floats(160, 200).to(torch.float8_e4m3fn)
_BLOCK_SCALE = _floats(2, 2, seed=1).abs()
_NIBBLES = _integers(256, 6, 128, dtype=torch.uint8)
_INT4 = torch.stack([_NIBBLES & 15, _NIBBLES >> 4], -1).flatten(1).to(torch.int8)
_SIGNED = torch.where(_INT4 > 7, _INT4 - 16, _INT4)


def _dequantize(name: str, x: Tensor, scale: Tensor, dtype: str, expected: Any, **attributes: Any) -> Case:
    return Case(
        f"dequantise {name}",
        [Given(x), Given(scale)],
        lambda t, n, x: _set(n.add_dequantize(x[0], x[1], getattr(t, dtype)), **attributes),
        lambda x, scale: [expected(x, scale)],
    )


QUANTISATION = [
    _dequantize(
        "fp8 in ragged blocks of 128 x 128",
        _FP8,
        _BLOCK_SCALE,
        "bfloat16",
        lambda x, s: (x.double() * _blocks(s, x.shape, (128, 128))).bfloat16(),
        block_shape=(128, 128),
    ),
    _dequantize(
        "int8 by row",
        _integers(128, 6, 32, low=-128, dtype=torch.int8),
        _floats(6, seed=1).abs(),
        "float32",
        lambda x, s: x.float() * s[:, None],
        axis=0,
    ),
    _dequantize(
        "int4 in groups of 128",
        _NIBBLES,
        _floats(6, 2, seed=1).abs().bfloat16(),
        "bfloat16",
        lambda x, s: (_SIGNED.double() * s.double().repeat_interleave(128, 1)).bfloat16(),
    ),
]

CASES = [*POINTWISE, *SHAPES, *INDEXING, *ARITHMETIC, *ATTENTION, *QUANTISATION]
