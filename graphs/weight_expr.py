"""How a weight of a lowered graph comes about from the model's weights, as a small expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

FLOAT32 = "float32"
# Items `begin` to `end` of an axis.
SLICE = "slice"
Param = int | float | str | bool


@dataclass(frozen=True)
class WeightExpr:
    """A packing applied to weights, or a leaf: a weight of the traced graph.

    Args:
        packing: A key of `dsv3export.graphs.packing.PACKINGS`; of a leaf the float type that it is wanted in.
        inputs: What it is applied to.
        params: Its parameters, e.g. ``(("Dn", 128), ("H", 16))``.
        name: A leaf's weight.
    """

    packing: str
    inputs: tuple[WeightExpr, ...] = ()
    params: tuple[tuple[str, Param], ...] = ()
    name: str = ""

    def leaves(self) -> tuple[WeightExpr, ...]:
        """The leaves, left to right."""
        return tuple(leaf for each in self.inputs for leaf in each.leaves()) if self.inputs else (self,)

    def substitute(self, leaves: Mapping[str, WeightExpr]) -> WeightExpr:
        """The expression with each leaf replaced by what its name stands for; unnamed leaves stay."""
        if not self.inputs:
            return leaves.get(self.name, self)
        return replace(self, inputs=tuple(each.substitute(leaves) for each in self.inputs))

    def describe(self) -> str:
        """E.g. ``interleave_gate_up(float32, float32)``, for the engine's weight table."""
        if not self.inputs:
            return self.packing
        return f"{self.packing}({', '.join(each.describe() for each in self.inputs)})"


def leaf(name: str) -> WeightExpr:
    """A weight of the traced graph as float32."""
    return WeightExpr(FLOAT32, name=name)
