"""What ops build on: each function of ONNX Runtime that the library calls by its place in the table, seen to work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

X = np.arange(6, dtype=np.float32).reshape(2, 3)
# Element types of ONNX Runtime's C interface.
WEIGHTS = {
    2: np.arange(10, dtype=np.uint8).reshape(5, 1, 2),
    3: np.arange(-5, 5, dtype=np.int8),
    6: np.arange(7, dtype=np.int32),
    10: np.arange(7, dtype=np.float16),
    16: np.arange(7, dtype=np.float32).astype(ml_dtypes.bfloat16),
    17: np.arange(7, dtype=np.float32).astype(ml_dtypes.float8_e4m3fn),
}


class Probe(OneNode):
    """A node of a probe's op, in two outputs unless said otherwise."""

    def __init__(self, probe: Path, op: str, inputs: Any, weights: Any, attributes: Any, **options: Any) -> None:
        super().__init__(op, inputs, weights, attributes, library=(probe, "probe"), **options)


def facts(
    probe: Path, folder: Path, weights: dict[str, NDArray[Any] | None], **options: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32], Probe]:
    """Rows of (present, element type, rank, is an initializer, sum of bytes, address) of four inputs; attributes."""
    attributes = options.pop("attributes", {})
    outputs = (TensorProto.INT64, TensorProto.FLOAT)
    node = Probe(probe, "Probe", {"x": X}, weights, attributes, folder=folder, outputs=outputs, **options)
    return *node(x=X), node


@pytest.mark.parametrize("inlined", [True, False], ids=["inlined", "plain"])
@pytest.mark.parametrize("element", WEIGHTS)
def test_weights_are_seen_at_creation_where_they_lie(probe: Path, element: int, inlined: bool, tmp_path: Path) -> None:
    weight = WEIGHTS[element]
    seen, _, node = facts(probe, tmp_path, {"a": weight}, inlined=inlined)
    assert seen[0].tolist()[:4] == [1, 1, 2, 0]
    total = int(weight.view(np.uint8).astype(np.int64).sum())
    assert seen[1].tolist() == [1, element, weight.ndim, 1, total, node.weights["a"].data_ptr()]
    assert not seen[2:].any()


@pytest.mark.parametrize("inlined", [True, False], ids=["inlined", "plain"])
def test_optional_inputs(probe: Path, inlined: bool, tmp_path: Path) -> None:
    weights = {"a": None, "b": WEIGHTS[2]}
    seen, _, _ = facts(probe, tmp_path, weights, inlined=inlined)
    assert seen[:, 0].tolist() == [1, 0, 1, 0]
    assert facts(probe, tmp_path, {}, inlined=inlined)[0][:, 0].tolist() == [1, 0, 0, 0]


def test_attributes_and_threads(probe: Path, tmp_path: Path) -> None:
    attributes = {"integer": -3, "real": 1.25, "text": "per group"}
    assert facts(probe, tmp_path, {}, attributes=attributes, threads=3)[1].tolist() == [-3, 1.25, 9, 3]
    assert facts(probe, tmp_path, {}, attributes={"text": ""}, threads=1)[1].tolist() == [7, 0.5, 0, 1]
    assert facts(probe, tmp_path, {}, threads=1)[1].tolist() == [7, 0.5, len("nothing"), 1]


def test_a_variadic_input_takes_any_types(probe: Path, tmp_path: Path) -> None:
    weights = {f"w{element}": weight for element, weight in WEIGHTS.items()}
    (y,) = Probe(probe, "ProbeVariadic", {"x": X}, weights, {}, folder=tmp_path)(x=X)
    np.testing.assert_array_equal(y, X + len(WEIGHTS))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_loops_do_each_task_once_with_scratch_of_its_own(probe: Path, count: int, threads: int, tmp_path: Path) -> None:
    node = Probe(probe, "ProbeLoop", {"x": X}, {}, {"count": count}, folder=tmp_path, threads=threads)
    for _ in range(3):
        assert node(x=X)[0].tolist() == [count * (count - 1) / 2]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("creation", "ProbeFailure: refused while created, 42"),
        ("weight", "ProbeFailure: x: expected an initializer, got none"),
        ("attribute", "ProbeFailure: .*absent"),
    ],
)
def test_a_refusal_at_creation_is_the_session_s(probe: Path, where: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        Probe(probe, "ProbeFailure", {"x": X}, {}, {"where": where}, folder=tmp_path)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("memory", "ProbeFailure: std::bad_alloc"),
        ("type", "ProbeFailure: expected int64, got float32"),
        ("task", "ProbeFailure: task 57"),
        ("nothing known", "ProbeFailure"),
    ],
)
def test_what_is_thrown_becomes_an_exception_of_the_run(
    probe: Path, where: str, message: str, threads: int, tmp_path: Path
) -> None:
    node = Probe(probe, "ProbeFailure", {"x": X}, {}, {"where": where}, folder=tmp_path, threads=threads)
    for _ in range(2):  # the session can go on
        with pytest.raises(Exception, match=message):
            node(x=X)
