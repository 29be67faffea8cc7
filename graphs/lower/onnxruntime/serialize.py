"""A lowered model as ONNX bytes: its weights become initializers whose data lie in the engine's weight files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from dsv3export.errors import InternalError


@dataclass(frozen=True)
class Location:
    """Where a weight's bytes lie: a file relative to the engine, offset and length in bytes."""

    file: str
    offset: int
    length: int


def serialize(model: ir.Model, locations: Mapping[str, Location]) -> bytes:
    """ONNX bytes of `model`; each main-graph input that `locations` names becomes an external initializer."""
    graph = model.graph
    weights = [value for value in graph.inputs if value.name in locations]
    run_time = [value for value in graph.inputs if value.name not in locations]
    graph.inputs.clear()
    graph.inputs.extend(run_time)
    for value in weights:
        value.const_value = _external(value, locations[str(value.name)])
        graph.register_initializer(value)
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def _external(value: ir.Value, place: Location) -> ir.ExternalTensor:
    if value.dtype is None or value.shape is None:
        raise InternalError(f"weight {value.name} has no dtype or shape")
    return ir.ExternalTensor(
        place.file, place.offset, place.length, value.dtype, shape=value.shape, name=str(value.name)
    )
