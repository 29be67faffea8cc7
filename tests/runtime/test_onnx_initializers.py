from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.runtime.onnx_initializers import ExternalTensor, external_initializers
from dsv3export.runtime.protobuf import MalformedMessageError
from tests.runtime.toy_model import onnx_graph


def test_reads_what_onnx_wrote() -> None:
    model = onnx.load_from_string(onnx_graph(50))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3), "inline"))
    scalar = model.graph.initializer.add(name="scalar", data_type=onnx.TensorProto.BFLOAT16)
    scalar.data_location = onnx.TensorProto.EXTERNAL
    expected = {
        tensor.name: ExternalTensor(tensor.name, tensor.data_type, tuple(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.name != "inline"
    }
    assert len(expected) == 4 and expected["head"].shape == (24, 50)
    assert external_initializers(model.SerializeToString()) == expected


def test_packed_dimensions_are_read_too() -> None:
    tensor = b"\x0a\x03\x80\x01\x05" + b"\x10\x01" + b"\x42\x01w" + b"\x70\x01"  # dims 128, 5; float; "w"; external
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    model = b"\x08\x0b" + b"\x3a" + bytes([len(graph)]) + graph
    assert external_initializers(model) == {"w": ExternalTensor("w", 1, (128, 5))}


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_holds_nothing(data: bytes) -> None:
    with contextlib.suppress(MalformedMessageError):
        external_initializers(data)


@given(st.data())
def test_a_damaged_graph_never_does_worse_than_fail(data: st.DataObject) -> None:
    graph = bytearray(onnx_graph(50))
    graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedMessageError):
        external_initializers(bytes(graph[: data.draw(st.integers(0, len(graph)))]))


@pytest.mark.parametrize("data", [b"\x80" * 12, b"\x3a\x7f", b"\x3b", b"\x08"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        external_initializers(data)
