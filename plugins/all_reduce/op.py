"""dsv3::AllReduce: the sum of what the ranks of a group have computed of a value."""

from __future__ import annotations

from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.plugins.collectives import communicator
from dsv3export.plugins.registry import Attribute, Attributes, Dims, Op, Port


def all_reduce(x: Tensor, group: str) -> Tensor:
    """The sum over the ranks of the group, on each of them.

    Args:
        x: [..., D], this rank's part of the sum.
        group: "tensor" or "stage".
    """
    return communicator().all_reduce(x, group)


def function(dims: Dims, attributes: Attributes) -> str:
    raise InternalError("AllReduce is a cut between segments; no backend runs it as a node")


ALL_REDUCE = Op(
    name="AllReduce",
    torch_name="dsv3::all_reduce",
    doc="The sum of x over the ranks of a group. The graph is cut here: a communicator does it between two segments.",
    inputs=(Port("x", ("float",), ("...", "D")),),
    outputs=(Port("y", ("float",), ("...", "D")),),
    attributes=(Attribute("group", "string", "tensor or stage"),),
    kernel=all_reduce,
    function=function,
)
