"""TensorRT-RTX takes the network of each op, and makes an engine of it without a GPU."""

from __future__ import annotations

import pytest

from dsv3export.engine.program import Phase
from dsv3export.graphs.lower.tensorrt.objects import Module
from dsv3export.runtime.tensorrt_module import load_tensorrt
from tests.graphs.tensorrt.one_op import NATIVE_CASES, define_op
from tests.plugins.cases import Case


@pytest.fixture(scope="module")
def trt() -> Module:
    pytest.importorskip("tensorrt_rtx_bindings")
    return load_tensorrt("tensorrt-rtx")


# Of each op, cases that differ in what TensorRT may refuse.
_CASES = [case for case in NATIVE_CASES if any(part in case.name for part in ("decode", "true", "int", "cut", "odd"))]


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("case", _CASES, ids=str)
def test_an_engine_of_each_op_is_built(trt: Module, case: Case, phase: Phase) -> None:
    # 16 bits are what TensorRT has its own layouts and kernels for, and so what it may refuse.
    one = define_op(trt, case, "F16" if "f16" in case.name else "BF16", phase, most=16)
    assert one.builder.build_serialized_network(one.network, one.config) is not None, one.errors
    names = [one.network.get_layer(place).name for place in range(one.network.num_layers)]
    assert len(set(names)) == len(names)
    assert all(name.startswith("one_op.") for name in names)
