"""Kernels on a CPU, program by program, in Triton's interpreter: slow, and of the same source as on a GPU.

Triton decides at import whether functions are compiled or interpreted, so that this works only in a process that was
started for it (`start_interpreting`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels.compiler import load_triton, triton_function
from dsv3export.plugins.kernels.plugin import Launch
from dsv3export.plugins.kernels.sizes import known

_LARGEST_E4M3 = 448.0


def start_interpreting() -> None:
    """Makes this process interpret kernels; before Triton is imported.

    Raises:
        InternalError: Triton is imported already.
    """
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise InternalError("Triton was imported before its interpreter was chosen")
    os.environ["TRITON_INTERPRET"] = "1"
    load_triton()
    _mend()


def interpret(launch: Launch, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Runs a launch on CPU tensors; outputs are written in place."""
    names = [name for name, _ in launch.build.arguments]
    types = dict(launch.build.arguments)
    values: list[Tensor | int] = [*inputs, *(known(size) for size in launch.integers), *outputs]
    passed = {
        name: value.view(torch.uint8) if isinstance(value, Tensor) and types[name] == "*u8" else value
        for name, value in zip(names, values, strict=True)
    }
    grid = tuple(known(size) for size in launch.grid)
    triton_function(launch.build)[grid](**passed, **dict(launch.build.constants))


def _mend() -> None:
    """Makes conversions round to nearest even, as devices do, and products of narrow floats those of their values.

    Triton's interpreter (3.7 and 3.9) cuts float32 to bfloat16, loses a carry on the way to float8, and computes with
    the bits of a bfloat16 as if they were an integer.
    """
    interpreter: Any = import_module("triton.runtime.interpreter")
    language = import_module("triton.language")
    torch_types = {
        language.float32: torch.float32,
        language.float16: torch.float16,
        language.bfloat16: torch.bfloat16,
        language.float8e4nv: torch.float8_e4m3fn,
    }

    def convert(data: Any, given: Any, wanted: Any, _rounding: Any) -> Any:
        values = torch.from_numpy(np.ascontiguousarray(data)).view(torch_types[given]).to(torch.float32)
        if wanted == language.float8e4nv:
            values = values.clamp(-_LARGEST_E4M3, _LARGEST_E4M3)
        bits = getattr(torch, f"uint{wanted.primitive_bitwidth}")
        return values.to(torch_types[wanted]).view(bits).numpy()

    def value(handle: Any) -> Any:
        return convert(handle.data, handle.dtype.scalar, language.float32, None).view(np.float32)

    def create_dot(_builder: Any, a: Any, b: Any, d: Any, _precision: Any, _imprecise: Any) -> Any:
        return interpreter.TensorHandle(np.matmul(value(a), value(b)) + d.data, language.float32)

    builder: Any = interpreter.InterpreterBuilder
    cast, binary = builder.cast_impl, builder.binary_op

    def cast_impl(self: Any, source: Any, wanted: Any) -> Any:
        if wanted.scalar == language.bfloat16 and source.dtype.scalar.is_int():
            source = cast(self, source, language.float32)
        return cast(self, source, wanted)

    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if left.dtype.scalar != language.bfloat16:
            return binary(self, left, right, operation)
        result = np.ascontiguousarray(operation(value(left), value(right)))
        if result.dtype == np.bool_:
            return interpreter.TensorHandle(result, language.int1)
        return interpreter.TensorHandle(convert(result, language.float32, language.bfloat16, None), language.bfloat16)

    interpreter._convert_float = convert
    builder.create_dot, builder.cast_impl, builder.binary_op = create_dot, cast_impl, binary_op
