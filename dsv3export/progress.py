"""How long work reports its progress: an interface that the library calls and the CLI draws."""

from __future__ import annotations

from typing import Literal, Protocol

Unit = Literal["bytes", "tensors", "layers", "tokens", "recipes", "ops", "kernels", "steps", "rounds", "ranks"]


class Progress(Protocol):
    """One bar at a time: `start`, any number of `advance`, `finish`."""

    def start(self, title: str, total: int, unit: Unit) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...

    def note(self, text: str) -> None:
        """Something that is worth a line, between two bars."""
        ...


class NoProgress:
    """Says nothing."""

    def start(self, title: str, total: int, unit: Unit) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def finish(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass
