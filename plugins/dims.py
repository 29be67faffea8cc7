"""Binding an op's dimension symbols to the sizes of actual inputs."""

from __future__ import annotations

from collections.abc import Sequence

from dsv3export.plugins.registry import Op

Shape = Sequence[int | str]


def bind_dims(op: Op, shapes: Sequence[Shape]) -> dict[str, int | str]:
    """Symbol -> size (an int, or the name of a run-time size) for one node's input shapes.

    A compound dimension such as ``H*(Dn+Dv)`` is bound under its own text; ``...`` stands for any leading dimensions.

    Raises:
        ValueError: An input has another rank than the schema's, or a symbol has two sizes; says which.
    """
    bound: dict[str, int | str] = {}
    for port, shape in zip(op.inputs_given(len(shapes)), shapes, strict=True):
        symbols = port.dims[1:] if port.dims[0] == "..." else port.dims
        if len(shape) != len(symbols) and (port.dims[0] != "..." or len(shape) < len(symbols)):
            raise ValueError(f"{op.name}.{port.name}: expected dims [{', '.join(port.dims)}], got {list(shape)}")
        for symbol, size in zip(symbols, shape[len(shape) - len(symbols) :], strict=True):
            if bound.setdefault(symbol, size) != size:
                raise ValueError(f"{op.name}.{port.name}: dim {symbol} is {size}, but {bound[symbol]} elsewhere")
    return bound


def static_dims(op: Op, bound: dict[str, int | str]) -> dict[str, int]:
    """The dimensions that are known before run time, and those that the op derives from them."""
    static = {symbol: size for symbol, size in bound.items() if isinstance(size, int)}
    return static | {symbol: derive(static) for symbol, derive in op.derived_dims}
