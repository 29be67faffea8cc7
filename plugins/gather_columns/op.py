"""dsv3::GatherColumns: the columns that the ranks of a group have computed, side by side on the first of them."""

from __future__ import annotations

from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.plugins.collectives import communicator
from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port


def gather_columns(x: Tensor, group: str) -> Tensor:
    """Where the rank is the group's first one, all columns; elsewhere `x`, which nobody needs any more.

    Args:
        x: [..., N], this rank's columns.
        group: "tensor" or "stage".
    """
    return communicator().gather(x, group)


def function(dims: Dims, attributes: Attributes) -> str:
    raise InternalError("GatherColumns is a cut between segments; no backend runs it as a node")


GATHER_COLUMNS = Op(
    name="GatherColumns",
    torch_name="dsv3::gather_columns",
    doc="All columns of a value on the first rank of a group. The graph is cut here: a communicator does it.",
    inputs=(Port("x", ("float",), ("...", "N")),),
    outputs=(Port("y", ("float",), ("...", "M")),),
    attributes=(Attribute("group", "string", "tensor or stage"),),
    kernel=gather_columns,
    function=function,
)
