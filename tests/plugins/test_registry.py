"""The registry, the schemas it holds, and the binding of dimension symbols."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

import pytest
import torch

from dsv3export.plugins import DOMAIN, OPS
from dsv3export.plugins.dims import bind_dims, static_dims
from dsv3export.plugins.registry import by_name


@pytest.mark.parametrize("changes", [{}, {"name": "Other"}, {"torch_name": "dsv3::other"}])
def test_two_ops_of_one_name_are_refused(changes: dict[str, str]) -> None:
    linear = OPS["Linear"]
    with pytest.raises(ValueError, match="registered twice"):
        by_name([linear, dataclasses.replace(linear, **changes)])


def test_ops_of_different_names_are_indexed() -> None:
    linear = OPS["Linear"]
    other = dataclasses.replace(linear, name="Other", torch_name="dsv3::other")
    assert by_name([linear, other]) == {"Linear": linear, "Other": other}


@pytest.mark.parametrize("name", sorted(OPS))
def test_schema_and_torch_signature_agree(name: str) -> None:
    """Tensors first, then the attributes, under the same names, and as many results."""
    op = OPS[name]
    namespace, _, torch_name = op.torch_name.partition("::")
    assert namespace == DOMAIN
    schema = getattr(torch.ops.dsv3, torch_name).default._schema
    assert [argument.name for argument in schema.arguments] == [
        *(port.name for port in op.inputs),
        *(attribute.name for attribute in op.attributes),
    ]
    types = {"int": "int", "float": "float", "string": "str"}
    scalars = [str(argument.type) for argument in schema.arguments[len(op.inputs) :]]
    assert scalars == [types[attribute.type] for attribute in op.attributes]
    assert len(schema.returns) == len(op.outputs)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_is_documented(name: str) -> None:
    op = OPS[name]
    assert op.doc.endswith(".")
    assert all(attribute.doc for attribute in op.attributes)
    assert inspect.getdoc(op.kernel)
    assert {input_name for _, input_name in op.aliases} <= {port.name for port in op.inputs}
    assert {output_name for output_name, _ in op.aliases} <= {port.name for port in op.outputs}


def test_dims_bind_symbols_across_inputs() -> None:
    bound = bind_dims(OPS["LatentAppend"], [["B", 64, 24], ["B", "S", 20], ["B", "S", 4], ["B"]])
    assert bound == {"B": "B", "T": 64, "Dc+Dr": 24, "S": "S", "Dc": 20, "Dr": 4}
    assert static_dims(OPS["Linear"], bound) == {"T": 64, "Dc+Dr": 24, "Dc": 20, "Dr": 4}


@pytest.mark.parametrize("leading", [[], [3], ["B", "S"], [1, 2, 3]])
def test_dots_stand_for_any_leading_dims(leading: list[int | str]) -> None:
    assert bind_dims(OPS["Linear"], [[*leading, 8], [5, 8]]) == {"K": 8, "N": 5}


BAD_SHAPES: list[tuple[str, Sequence[Sequence[int | str]], str]] = [
    ("Linear", [["B", 8], [5, 9]], r"Linear.weight: dim K is 9, but 8 elsewhere"),
    ("Linear", [[8], [5, 8, 1]], r"Linear.weight: expected dims \[N, K\], got \[5, 8, 1\]"),
    ("Linear", [[], [5, 8]], r"Linear.x: expected dims \[\.\.\., K\], got \[\]"),
    ("LatentAppend", [[2, 9, 24], [3, 1, 20], [2, 1, 4], [2]], r"LatentAppend.kv_c: dim B is 3, but 2 elsewhere"),
    ("LatentAppend", [[2, 9, 24], [2, "S", 20], [2, 1, 4], [2]], r"LatentAppend.k_pe: dim S is 1, but S elsewhere"),
    ("LatentAppend", [[2, 9, 24], [2, 1, 20], [2, 1, 4], [2, 1]], r"LatentAppend.start: expected dims \[B\]"),
    ("MoERoute", [["T", 8], [9]], r"MoERoute.bias: dim E is 9, but 8 elsewhere"),
]


@pytest.mark.parametrize(("op", "shapes", "message"), BAD_SHAPES)
def test_shapes_that_do_not_fit_are_named(op: str, shapes: Sequence[Sequence[int | str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind_dims(OPS[op], shapes)


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        bind_dims(OPS["Linear"], [[3, 8]])
