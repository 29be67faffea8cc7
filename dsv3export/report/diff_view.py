"""A comparison of two models, arranged as reports show it: by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from dsv3export.compare.difference import ULP_BINS, Summary
from dsv3export.compare.layers import Fault, LayerDiff, RouterDiff, ValueDiff
from dsv3export.compare.routing import Flip
from dsv3export.report.text import number

# What the stages that are no decoder layer hand on.
_OUTPUTS = ("embed_tokens", "lm_head")
_LAYER = "layers."
# Of a table: what is shown, by what it is sorted, its colour.
Cell = tuple[str, float | str, str]
# As many columns as can be told apart.
MOST_BINS = 64


@dataclass(frozen=True)
class LayerView:
    """One stage: its values, which of them it hands on, and its router."""

    name: str
    values: tuple[ValueDiff, ...]
    router: RouterDiff | None

    @property
    def label(self) -> str:
        """``17`` of ``layers.17``; other stages by their name."""
        return self.name.removeprefix(_LAYER)

    @cached_property
    def output(self) -> ValueDiff:
        named = [value for value in self.values if value.name == self.name or value.name in _OUTPUTS]
        return (named or self.values)[-1]

    @cached_property
    def own(self) -> ValueDiff:
        """The value that the layer itself gets most wrong."""
        return max(self.values, key=lambda value: severity(value.injected.worst_row))

    def flips(self, mode: str = "propagated") -> tuple[Flip, ...]:
        if self.router is None:
            return ()
        return self.router.propagated.flips if mode == "propagated" else self.router.injected.flips


@dataclass(frozen=True)
class Metric:
    """A column of the table of layers: `read` gives what is shown, `severity` what it is coloured by."""

    label: str
    meaning: str
    read: Callable[[LayerView], float]
    severity: Callable[[float], float] = abs


def _odd_ulps(summary: Summary) -> float:
    """The share of numbers that are more than one bfloat16 step apart."""
    near = sum(count for bound, count in zip(ULP_BINS, summary.ulps, strict=False) if bound <= 1)
    return 1 - near / summary.count if summary.count else 0.0


METRICS = (
    Metric("own error", "largest error of a token's row in any value that the layer computes from A's input",
           lambda layer: layer.own.injected.worst_row),
    Metric("own, output", "relative error of what the layer hands on, from A's input",
           lambda layer: layer.output.injected.relative),
    Metric("so far", "relative error of what the layer hands on, from its own input",
           lambda layer: layer.output.propagated.relative),
    Metric("so far, worst row", "the same of the token where it is largest",
           lambda layer: layer.output.propagated.worst_row),
    Metric("1 − cosine", "of what the layer hands on, from its own input",
           lambda layer: max(1 - layer.output.propagated.cosine, 0.0) if math.isfinite(layer.output.propagated.cosine)
           else math.nan),
    Metric("SNR, dB", "signal to noise of what the layer hands on, from its own input",
           lambda layer: layer.output.propagated.snr_db, lambda snr: 10.0 ** min(-snr / 20, 1.0)),
    Metric("> 1 bf16 step", "share of its numbers that are more than one step of bfloat16 apart",
           lambda layer: _odd_ulps(layer.output.propagated)),
    Metric("flips", "share of tokens that the router sends to other experts",
           lambda layer: len(layer.flips()) / layer.router.propagated.tokens
           if layer.router is not None and layer.router.propagated.tokens else 0.0),
)  # fmt: skip


class DiffView:
    """What reports show of a comparison."""

    def __init__(self, diff: LayerDiff) -> None:
        self.diff = diff

    @cached_property
    def layers(self) -> list[LayerView]:
        """All stages that have a value, in order."""
        values: dict[str, list[ValueDiff]] = {}
        for value in self.diff.values:
            values.setdefault(value.stage, []).append(value)
        routers = {router.stage: router for router in self.diff.routers}
        return [LayerView(name, tuple(found), routers.get(name)) for name, found in values.items()]

    @property
    def routed(self) -> list[LayerView]:
        return [layer for layer in self.layers if layer.router is not None]

    @property
    def decoder(self) -> list[LayerView]:
        """The decoder layers alone."""
        return [layer for layer in self.layers if layer.name.startswith(_LAYER)]

    @cached_property
    def parts(self) -> list[str]:
        """The values of decoder layers by their names within the layer, in the order of computation."""
        found: list[str] = []
        for layer in self.decoder:
            place = len(found)
            for value in reversed(layer.values):
                part = part_of(value)
                if part in found:
                    place = found.index(part)
                else:
                    found.insert(place, part)
        return found

    @property
    def tokens(self) -> int:
        return sum(self.diff.prompts)

    @property
    def flips(self) -> int:
        return sum(len(layer.flips()) for layer in self.routed)

    @property
    def state(self) -> str:
        """``bad`` with a fault, ``open`` where none was looked for, ``good`` otherwise."""
        if self.diff.first_fault is not None:
            return "bad"
        return "open" if math.isinf(self.diff.tolerance) else "good"

    @property
    def headline(self) -> str:
        """The result in one line."""
        if self.diff.first_fault is not None:
            return f"First fault: {self.diff.first_fault.name}"
        if self.state == "open":
            return "No tolerance was set: the two are of different precision"
        return f"No layer is off by more than {number(self.diff.tolerance)}"


def severity(error: float) -> float:
    """For an order in which NaN is the largest."""
    return math.inf if math.isnan(error) else error


def part_of(value: ValueDiff) -> str:
    """``self_attn.q_a_proj`` of ``layers.3.self_attn.q_a_proj``; ``output`` of the layer's own value."""
    return value.name.removeprefix(value.stage).removeprefix(".") or "output"


def fault_facts(fault: Fault) -> list[tuple[str, str]]:
    """Label and text, one for each thing that is known of a fault."""
    return [
        ("metric", f"{fault.metric}: {number(fault.value)}, bound {number(fault.bound)}"),
        ("place", f"prompt {fault.prompt}, position {fault.position}, index {fault.index}"),
        ("expected", scalar(fault.expected)),
        ("got", scalar(fault.got)),
    ]


def scalar(value: object) -> str:
    """A number with all digits that float32 has, or a list as it is."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def binned(values: Sequence[float], most: int = MOST_BINS) -> list[float]:
    """At most `most` numbers: the largest of each run of neighbours, NaN above all."""
    count = min(len(values), most)
    edges = [len(values) * i // count for i in range(count + 1)] if count else [0]
    return [max(values[a:b], key=severity) for a, b in pairwise(edges)]


def bin_starts(length: int, most: int = MOST_BINS) -> list[int]:
    """The first place of each run that `binned` makes of `length` values."""
    count = min(length, most)
    return [length * i // count for i in range(count)]
