"""Whom the collective ops of a cut graph speak to: the communicator of the rank that is being run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor

from dsv3export.errors import InternalError


class TensorCommunicator(Protocol):
    """What the ops ask for; `group` is "tensor" or "stage"."""

    def all_reduce(self, x: Tensor, group: str) -> Tensor:
        """The sum of all ranks' `x`."""
        ...

    def gather(self, x: Tensor, group: str) -> Tensor:
        """On the group's first rank all ranks' `x` side by side along the last axis; elsewhere `x`."""
        ...


_CURRENT: ContextVar[TensorCommunicator | None] = ContextVar("dsv3export communicator", default=None)


@contextmanager
def speaking_to(communicator: TensorCommunicator) -> Iterator[None]:
    """Collective ops that this thread runs within the block use `communicator`."""
    token = _CURRENT.set(communicator)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def communicator() -> TensorCommunicator:
    """The one in use."""
    current = _CURRENT.get()
    if current is None:
        raise InternalError("a graph for several ranks is run without a communicator")
    return current
