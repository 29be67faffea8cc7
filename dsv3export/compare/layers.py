"""Two models side by side, one layer at a time: what differs, where it begins, and how it grows.

Each stage of the second model runs twice: on what its own stages before have computed (*propagated*: the error as a
user gets it) and on what the first model's stage is given (*injected*: the error that this stage alone makes). The
first fault is looked for in the injected values, in the order in which they are computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.align import ROUTER_IDS, ROUTER_LOGITS, is_compared, token_rows
from dsv3export.compare.caches import CacheDiff, CacheErrors
from dsv3export.compare.causes import ErrorSplit
from dsv3export.compare.difference import Coordinate, Difference, Summary
from dsv3export.compare.distributions import Distributions, DistributionSummary
from dsv3export.compare.routing import Flip, Routing, RoutingSummary
from dsv3export.compare.stages import Stage, StagedModel, Values
from dsv3export.errors import RequestError
from dsv3export.progress import NoProgress, Progress

Array = NDArray[Any]


@dataclass(frozen=True)
class ValueDiff:
    """One value of the graph: its error in both modes. Of router choices there is a `RouterDiff` instead."""

    name: str
    stage: str
    shape: tuple[int, ...]
    propagated: Summary
    injected: Summary


@dataclass(frozen=True)
class RouterDiff:
    """The router of one layer."""

    name: str
    stage: str
    propagated: RoutingSummary
    injected: RoutingSummary


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong.

    Attributes:
        name: The value, e.g. ``layers.3.mlp.experts``.
        metric: What is beyond its bound: ``relative error of a row``, ``shape``, or ``unexplained router flip``.
        value, bound: That metric; of a shape or a flip 1 and 0.
        prompt, position, index: The first place; `index` counts within the token's row.
        expected, got: Both values there: numbers, or for a flip or a shape lists.
    """

    name: str
    metric: str
    value: float
    bound: float
    prompt: int
    position: int
    index: int
    expected: Any
    got: Any


@dataclass(frozen=True)
class LayerDiff:
    """The whole comparison; `diff_file` writes and reads it.

    Attributes:
        prompts: The number of tokens of each prompt.
        values, routers: In the order of the graph.
        only_expected, only_got: Values that one side alone computes.
        logits: Of the propagated run.
        first_fault: None where all is within the tolerance.
        drafts: As `logits`, of the MTP layer; None where one of the models has none, or no prompt two tokens.
        caches: The latent cache of each layer.
        causes: Where the error of an engine comes from, if that was asked for.
    """

    expected: str
    got: str
    tolerance: float
    values: tuple[ValueDiff, ...]
    routers: tuple[RouterDiff, ...]
    only_expected: tuple[str, ...]
    only_got: tuple[str, ...]
    logits: DistributionSummary
    first_fault: Fault | None
    prompts: tuple[int, ...]
    drafts: DistributionSummary | None = None
    caches: tuple[CacheDiff, ...] = ()
    causes: ErrorSplit | None = None


def diff_layers(
    expected: StagedModel, got: StagedModel, prompts: int, tolerance: float, progress: Progress | None = None
) -> LayerDiff:
    """Compare two models on the same prompts.

    Memory: the weights of one stage of each model, one prompt's values of that stage, and between stages the hidden
    states of all prompts.

    Args:
        prompts: How many both models were given.
        tolerance: The largest `Summary.worst_row` of an injected value that is no fault.

    An MTP layer that one model lacks is left out, and listed in `only_expected` or `only_got`.

    Raises:
        RequestError: The models have other layers.
    """
    stages = _common_stages(expected, got)
    walk = _Walk(expected, got, prompts, tolerance)
    progress = progress or NoProgress()
    progress.start("comparing", len(stages), "layers")
    for name in stages:
        with expected.open(name) as mine, got.open(name) as other:
            walk.stage(name, mine, other)
        progress.advance(1)
    progress.finish()
    return walk.result(expected.label, got.label)


def _common_stages(expected: StagedModel, got: StagedModel) -> list[str]:
    mtp = {f"layers.{layer}" for layer in expected.config.mtp_layer_ids}
    common = [name for name in expected.stages if name in got.stages]
    if (set(expected.stages) ^ set(got.stages)) - mtp:
        raise RequestError(
            f"{expected.label} and {got.label}",
            expected=f"two models of the same layers ({len(expected.stages)} stages)",
            got=f"{len(got.stages)} stages",
        )
    return common


class _Walk:
    """What is carried from stage to stage."""

    def __init__(self, expected: StagedModel, got: StagedModel, prompts: int, tolerance: float) -> None:
        self._config = expected.config
        self._mtp = [f"layers.{layer}" for layer in self._config.mtp_layer_ids]
        self._prompts, self._tolerance = prompts, tolerance
        self._hidden: list[Array | None] = [None] * prompts
        self._values: list[ValueDiff] = []
        self._routers: list[RouterDiff] = []
        self._only = (
            [name for name in expected.stages if name not in got.stages],
            [name for name in got.stages if name not in expected.stages],
        )
        self._caches: list[CacheDiff] = []
        self._logits, self._drafts = Distributions(), Distributions()
        self._drafted = False
        self._fault: Fault | None = None

    def stage(self, name: str, expected: Stage, got: Stage) -> None:
        stage = _StageDiff(name, self._tolerance, Routing(self._config, expected.router_bias),
                           Routing(self._config, expected.router_bias))  # fmt: skip
        for prompt in range(self._prompts):
            hidden = self._hidden[prompt]
            mine, propagated = expected.run(prompt), got.run(prompt)
            injected = propagated if hidden is None else got.run(prompt, hidden)
            self._hidden[prompt] = mine[expected.handed_on]
            stage.add(prompt, mine[expected.output].shape[-2], mine, propagated, injected)
            if name == "head":
                self._logits.add(prompt, mine[expected.output], propagated[got.output])
            elif name in self._mtp:
                self._add_drafts(prompt, mine[expected.output], propagated[got.output])
        self._values += stage.values()
        self._routers += stage.routers()
        self._caches += stage.caches()
        for names, more in zip(self._only, stage.only, strict=True):
            names.extend(more)
        self._fault = self._fault or stage.fault()

    def _add_drafts(self, prompt: int, expected: Array, got: Array) -> None:
        """The last one is on a token that only stands for the next."""
        if len(expected) > 1:
            self._drafted = True
            self._drafts.add(prompt, expected[:-1], got[:-1])

    def result(self, expected: str, got: str) -> LayerDiff:
        return LayerDiff(
            expected, got, self._tolerance, tuple(self._values), tuple(self._routers),
            tuple(self._only[0]), tuple(self._only[1]), self._logits.summary(), self._fault,
            tuple(0 if hidden is None else hidden.shape[-2] for hidden in self._hidden),
            self._drafts.summary() if self._drafted else None, tuple(self._caches),
        )  # fmt: skip


class _StageDiff:
    """The values of one stage, over all prompts."""

    def __init__(self, name: str, tolerance: float, propagated: Routing, injected: Routing) -> None:
        self._name, self._tolerance = name, tolerance
        self._routing = {"propagated": propagated, "injected": injected}
        self._routed = False
        self._cache = CacheErrors(name)
        self._order: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._modes: dict[str, dict[str, Difference]] = {}
        self._unexplained: Flip | None = None
        self._misshapen: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {}
        self.only: tuple[list[str], list[str]] = ([], [])

    def add(self, prompt: int, tokens: int, expected: Values, propagated: Values, injected: Values) -> None:
        if prompt == 0:
            self._align(expected, injected)
        kept = self._route(prompt, expected, injected, "injected")
        self._route(prompt, expected, propagated, "propagated")
        self._cache.add(prompt, expected, propagated, injected)
        counted = None  # what is computed before the choice does not depend on it
        for name in self._order:
            if name.endswith(ROUTER_IDS):
                counted = kept
                continue
            mine, theirs = expected[name], injected[name]
            if mine.shape != theirs.shape:
                self._misshapen.setdefault(name, (prompt, mine.shape, theirs.shape))
                continue
            rows = [token_rows(name, values, tokens) for values in (expected, propagated, injected)]
            self._modes[name]["propagated"].add(prompt, rows[0], rows[1])
            self._modes[name]["injected"].add(prompt, rows[0], rows[2], counted)

    def values(self) -> Iterable[ValueDiff]:
        for name in self._order:
            if name in self._modes and name not in self._misshapen:
                modes = self._modes[name]
                yield ValueDiff(
                    name, self._name, self._shapes[name], modes["propagated"].summary(), modes["injected"].summary()
                )

    def caches(self) -> Iterable[CacheDiff]:
        found = self._cache.summary()
        return [] if found is None else [found]

    def routers(self) -> Iterable[RouterDiff]:
        if self._routed:
            propagated, injected = (self._routing[mode].summary() for mode in ("propagated", "injected"))
            yield RouterDiff(f"{self._name}.{ROUTER_IDS}", self._name, propagated, injected)

    def fault(self) -> Fault | None:
        """The first one in the order of the stage's values."""
        summaries = {diff.name: diff.injected for diff in self.values()}
        for name in self._order:
            if name in self._misshapen:
                prompt, mine, theirs = self._misshapen[name]
                return Fault(name, "shape", 1, 0, prompt, 0, 0, list(mine), list(theirs))
            if name.endswith(ROUTER_IDS) and self._unexplained is not None:
                flip = self._unexplained
                return Fault(
                    name, "unexplained router flip", 1, 0, flip.prompt, flip.position, 0,
                    list(flip.expected), list(flip.got),
                )  # fmt: skip
            if name in summaries and summaries[name].first_bad is not None:
                return _numeric_fault(name, summaries[name], self._tolerance)
        return None

    def _align(self, expected: Values, got: Values) -> None:
        """By name: what both sides compute, in the order of the first."""
        self._order = [name for name, value in expected.items() if name in got and is_compared(name, value)]
        self._shapes = {name: expected[name].shape for name in self._order}
        self._modes = {
            name: {"propagated": Difference(), "injected": Difference(self._tolerance)}
            for name in self._order
            if not name.endswith(ROUTER_IDS)
        }
        for names, values, others in ((self.only[0], expected, got), (self.only[1], got, expected)):
            names.extend(name for name, value in values.items() if name not in others and is_compared(name, value))

    def _route(self, prompt: int, expected: Values, got: Values, mode: str) -> NDArray[np.bool_] | None:
        """Which positions have the same experts on both sides; None where there is no router.

        From a flip that its scores explain on, a token goes through other experts, which says nothing about them.
        """
        names = [f"{self._name}.{part}" for part in (ROUTER_IDS, ROUTER_LOGITS)]
        if any(name not in expected or name not in got for name in names):
            return None
        ids, logits = ((expected[name], got[name]) for name in names)
        if ids[0].shape != ids[1].shape:
            self._misshapen.setdefault(names[0], (prompt, ids[0].shape, ids[1].shape))
            return None
        self._routed = True
        flips = self._routing[mode].add(prompt, *ids, logits)
        kept = np.ones(len(ids[0]), np.bool_)
        for flip in flips:
            kept[flip.position] = not flip.explained
            if mode == "injected" and not flip.explained:
                self._unexplained = self._unexplained or flip
        return kept


def _numeric_fault(name: str, summary: Summary, tolerance: float) -> Fault:
    place: Coordinate | None = summary.first_bad
    if place is None:
        raise ValueError(name)
    return Fault(
        name, "relative error of a row", summary.worst_row, tolerance,
        place.prompt, place.position, place.index, place.expected, place.got,
    )  # fmt: skip
