"""Layers of a TensorRT network as short calls: constants, arithmetic, shapes. Every layer gets a name.

Sizes are an int where they are known before run time, else an int64 tensor [1], as `Layers.dim` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.objects import DataType, ILayer, INetwork, ITensor, Module

# An int, or an int64 tensor [1].
Size = Any
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Layers:
    """Adds layers to one network.

    Args:
        trt: TensorRT's module, or a recorder that stands for it.
        network: What they are added to.

    Attributes:
        scope: What the names of the layers begin with; set for each node.
    """

    def __init__(self, trt: Module, network: INetwork) -> None:
        self.trt, self.network = trt, network
        self.scope = ""
        self._names: set[str] = set()
        # TensorRT does not own the memory of the arrays that it is given.
        self._kept: list[NDArray[Any]] = []

    def named(self, layer: ILayer | None, what: str) -> ILayer:
        """Name a layer ``<scope>:<what>``, numbered where there are several, and return it."""
        if layer is None:
            raise InternalError(f"TensorRT refuses the layer {self.scope}:{what}")
        name, count = f"{self.scope}:{what}", 1
        while name in self._names:
            count += 1
            name = f"{self.scope}:{what}_{count}"
        self._names.add(name)
        layer.name = name
        return layer

    def result(self, layer: ILayer | None, what: str) -> ITensor:
        """The only output of a layer, which gets a name."""
        return self.named(layer, what).get_output(0)

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array, contiguous, kept until the network is built."""
        kept = np.ascontiguousarray(array)
        self._kept.append(kept)
        return kept

    def constant(self, value: NDArray[Any] | Sequence[int] | float, dtype: DataType | None = None) -> ITensor:
        """A constant; ints become int64 and floats float32 where `value` is no array.

        Args:
            dtype: Cast to this one.
        """
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        kept = self.keep(array)
        if kept.dtype == _BFLOAT16:
            weights = self.trt.Weights(self.trt.DataType.BF16, kept.ctypes.data, kept.size)
        else:
            weights = self.trt.Weights(kept)
        # ascontiguousarray makes a scalar one-dimensional.
        made = self.result(self.network.add_constant(array.shape, weights), "constant")
        return made if dtype is None else self.cast(made, dtype)

    def cast(self, x: ITensor, dtype: DataType) -> ITensor:
        """`x` in another type; itself where it has that type."""
        return x if x.dtype == dtype else self.result(self.network.add_cast(x, dtype), "cast")

    def common(self, a: ITensor, b: ITensor) -> tuple[ITensor, ITensor]:
        """Both in one type: float32 where they differ."""
        if a.dtype == b.dtype:
            return a, b
        return self.cast(a, self.trt.DataType.FLOAT), self.cast(b, self.trt.DataType.FLOAT)

    # Arithmetic. Types must agree: the networks are strongly typed.

    def binary(self, operation: str, a: ITensor, b: ITensor) -> ITensor:
        """An `ElementWiseOperation` by name; the tensor of lower rank is broadcast from the left."""
        a, b = self.same_rank(a, b)
        layer = self.network.add_elementwise(a, b, getattr(self.trt.ElementWiseOperation, operation))
        return self.result(layer, operation.lower())

    def add(self, a: ITensor, b: ITensor) -> ITensor:
        return self.binary("SUM", a, b)

    def sub(self, a: ITensor, b: ITensor) -> ITensor:
        return self.binary("SUB", a, b)

    def mul(self, a: ITensor, b: ITensor) -> ITensor:
        return self.binary("PROD", a, b)

    def div(self, a: ITensor, b: ITensor) -> ITensor:
        return self.binary("DIV", a, b)

    def unary(self, operation: str, x: ITensor) -> ITensor:
        """A `UnaryOperation` by name."""
        return self.result(self.network.add_unary(x, getattr(self.trt.UnaryOperation, operation)), operation.lower())

    def activation(self, operation: str, x: ITensor) -> ITensor:
        """An `ActivationType` by name."""
        layer = self.network.add_activation(x, getattr(self.trt.ActivationType, operation))
        return self.result(layer, operation.lower())

    def reduce(self, operation: str, x: ITensor, axes: Sequence[int], keep: bool = True) -> ITensor:
        """A `ReduceOperation` by name."""
        layer = self.network.add_reduce(x, getattr(self.trt.ReduceOperation, operation), _mask(axes), keep)
        return self.result(layer, f"reduce_{operation.lower()}")

    def softmax(self, x: ITensor, axis: int) -> ITensor:
        layer = self.named(self.network.add_softmax(x), "softmax")
        layer.axes = _mask([axis])
        return layer.get_output(0)

    def matmul(self, a: ITensor, b: ITensor, transpose_a: bool = False, transpose_b: bool = False) -> ITensor:
        """a @ b over the last two axes, the others broadcast."""
        a, b = self.same_rank(a, b)
        how = self.trt.MatrixOperation
        flags = [how.TRANSPOSE if flag else how.NONE for flag in (transpose_a, transpose_b)]
        return self.result(self.network.add_matrix_multiply(a, flags[0], b, flags[1]), "matmul")

    def select(self, condition: ITensor, yes: ITensor, no: ITensor) -> ITensor:
        """`yes` where the condition holds, else `no`; all of one rank."""
        return self.result(self.network.add_select(condition, yes, no), "select")

    def topk(self, x: ITensor, count: int, axis: int) -> tuple[ITensor, ITensor]:
        """The `count` largest along `axis`, descending, and their int32 places."""
        layer = self.named(self.network.add_topk(x, self.trt.TopKOperation.MAX, count, _mask([axis])), "topk")
        return layer.get_output(0), layer.get_output(1)

    def gather(self, x: ITensor, places: ITensor, axis: int) -> ITensor:
        """ONNX's Gather."""
        return self.result(self.network.add_gather(x, places, axis), "gather")

    def gather_elements(self, x: ITensor, places: ITensor, axis: int) -> ITensor:
        """ONNX's GatherElements."""
        layer = self.named(self.network.add_gather_v2(x, places, self.trt.GatherMode.ELEMENT), "gather_elements")
        layer.axis = axis
        return layer.get_output(0)

    # Shapes.

    def dim(self, x: ITensor, axis: int) -> Size:
        """The size of an axis."""
        known = x.shape[axis]
        return int(known) if known >= 0 else self.slice(self.shape(x), [axis], [1])

    def shape(self, x: ITensor) -> ITensor:
        """The sizes of all axes: int64 [rank]."""
        return self.result(self.network.add_shape(x), "shape")

    def sizes(self, sizes: Sequence[Size]) -> ITensor:
        """An int64 tensor of sizes, known or not."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.asarray(sizes, np.int64))
        parts = [self.constant([size]) if isinstance(size, int) else size for size in sizes]
        return self.concat(parts, 0) if len(parts) > 1 else parts[0]

    def reshape(self, x: ITensor, sizes: Sequence[Size] | ITensor) -> ITensor:
        """`x` with other axes: sizes of which one may be -1, or an int64 tensor of them."""
        layer = self.named(self.network.add_shuffle(x), "reshape")
        # TensorRT would read 0 as "as in the input".
        layer.zero_is_placeholder = False
        if isinstance(sizes, Sequence) and all(isinstance(size, int) for size in sizes):
            layer.reshape_dims = self.trt.Dims(list(sizes))
        else:
            layer.set_input(1, self.sizes(sizes) if isinstance(sizes, Sequence) else sizes)
        return layer.get_output(0)

    def transpose(self, x: ITensor, order: Sequence[int]) -> ITensor:
        layer = self.named(self.network.add_shuffle(x), "transpose")
        layer.first_transpose = self.trt.Permutation(list(order))
        return layer.get_output(0)

    def unsqueeze(self, x: ITensor, axes: Sequence[int]) -> ITensor:
        """New axes of size 1 at these places of the result."""
        return self.result(self.network.add_unsqueeze(x, self.constant(list(axes))), "unsqueeze")

    def squeeze(self, x: ITensor, axes: Sequence[int]) -> ITensor:
        return self.result(self.network.add_squeeze(x, self.constant(list(axes))), "squeeze")

    def same_rank(self, a: ITensor, b: ITensor) -> tuple[ITensor, ITensor]:
        """Both tensors, the one of lower rank with axes of size 1 in front."""
        missing = len(a.shape) - len(b.shape)
        if missing > 0:
            return a, self.unsqueeze(b, range(missing))
        return (self.unsqueeze(a, range(-missing)), b) if missing < 0 else (a, b)

    def slice(
        self, x: ITensor, start: Sequence[Size], size: Sequence[Size], stride: Sequence[int] | None = None
    ) -> ITensor:
        """`size` elements of each axis from `start` on."""
        steps = list(stride or [1] * len(start))
        parts = [sizes if all(isinstance(each, int) for each in sizes) else None for sizes in (start, size)]
        # What comes as a tensor below has any numbers here.
        dims = [self.trt.Dims(list(part or [0] * len(steps))) for part in parts]
        layer = self.named(self.network.add_slice(x, *dims, self.trt.Dims(steps)), "slice")
        for port, (part, sizes) in enumerate(zip(parts, (start, size), strict=True), 1):
            if part is None:
                layer.set_input(port, self.sizes(sizes))
        return layer.get_output(0)

    def expand(self, x: ITensor, sizes: Sequence[Size]) -> ITensor:
        """`x` repeated along its axes of size 1; a slice of stride 0 there."""
        strides = [0 if x.shape[axis] == 1 else 1 for axis in range(len(sizes))]
        return self.slice(x, [0] * len(sizes), sizes, strides)

    def concat(self, parts: Sequence[ITensor], axis: int) -> ITensor:
        layer = self.named(self.network.add_concatenation(list(parts)), "concat")
        layer.axis = axis if axis >= 0 else axis + len(parts[0].shape)
        return layer.get_output(0)

    def arange(self, count: Size) -> ITensor:
        """0, 1, .. count - 1: int64 [count]."""
        layer = self.network.add_fill(self.trt.Dims([1]), self.trt.FillOperation.LINSPACE, self.trt.DataType.INT64)
        layer = self.named(layer, "arange")
        layer.set_input(0, self.sizes([count]))
        layer.set_input(1, self.constant(np.asarray(0, np.int64)))
        layer.set_input(2, self.constant([1]))
        return layer.get_output(0)


def _mask(axes: Sequence[int]) -> int:
    """TensorRT's set of axes; they count from the front."""
    return sum(1 << axis for axis in axes)
