"""A number with the arithmetic that it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A part of a sum.

    Attributes:
        name: What it is of, e.g. ``routed_experts``.
        value: Bytes or floating-point operations, by the sum that it belongs to.
        formula: How it was computed, with the numbers in it.
    """

    name: str
    value: int
    formula: str


def total(terms: Iterable[Term]) -> int:
    """The sum of the values."""
    return sum(term.value for term in terms)
