"""Where an error comes from: the same model several times, each run closer to the engine by one cause.

With y_0 what the exact model computes, y_k what it computes once the first k causes are in, and y_n what the engine
computes, the total error is the sum of the steps: y_n - y_0 = sum of (y_k - y_{k-1}). Their norms do not add up: steps
may cancel or help each other. So each cause has two figures: how large its step is, ||y_k - y_{k-1}|| / ||y_0||, and
its share of the total, <y_k - y_{k-1}, y_n - y_0> / ||y_n - y_0||^2. Shares add up to 1; one below 0 takes back what
others did. A step that tips a router's choice has all that follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.distributions import kl_divergence, log_softmax
from dsv3export.compare.stages import StagedModel
from dsv3export.errors import RequestError
from dsv3export.progress import NoProgress, Progress

Array = NDArray[Any]


@dataclass(frozen=True)
class Cause:
    """What one cause does to a value: the size of its step, and its share of the total."""

    name: str
    relative: float
    share: float


@dataclass(frozen=True)
class CauseSplit:
    """The error of one value by cause; `total` is ||y_n - y_0|| / ||y_0||."""

    stage: str
    total: float
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class ErrorSplit:
    """The error of a model by cause.

    Attributes:
        layers: What each stage makes of the exact model's input: the error that it makes itself.
        logits: Of the whole model, each run on its own.
        kl: KL(exact || with the causes up to this one), the mean over all positions in nats, for each cause.
    """

    layers: tuple[CauseSplit, ...]
    logits: CauseSplit
    kl: tuple[float, ...]


def split_causes(
    exact: StagedModel, causes: Sequence[tuple[str, StagedModel]], prompts: int, progress: Progress | None = None
) -> ErrorSplit:
    """Run every model stage by stage, each on the exact model's input and on its own.

    Memory: the weights of one stage of one model, and what each model's stage computes for all prompts.

    Args:
        causes: Each with the model that has it and all before it; the last one is the model in question.
        prompts: How many all models were given.

    Raises:
        RequestError: There is no cause, or the models have other layers.
    """
    if not causes:
        raise RequestError("causes", expected="at least one way in which the models differ", got="none")
    progress = progress or NoProgress()
    stages = [stage for stage in exact.stages if all(stage in model.stages for _, model in causes)]
    if "head" not in stages:
        raise RequestError(exact.label, expected="models of the same layers", got=causes[-1][1].label)
    progress.start("splitting the error", len(stages), "layers")
    hidden: list[Array | None] = [None] * prompts
    layers: list[CauseSplit] = []
    logits: CauseSplit | None = None
    kl: tuple[float, ...] = ()
    for stage in stages:
        results, handed_on = _exact_results(exact, stage, prompts)
        runs = [_results(model, stage, hidden) for _, model in causes]
        names = [name for name, _ in causes]
        layers.append(_split(stage, names, results, [own for own, _ in runs]))
        if stage == "head":
            logits = _split(stage, names, results, [propagated for _, propagated in runs])
            kl = tuple(_mean_kl(results, propagated) for _, propagated in runs)
        hidden = handed_on
        progress.advance(1)
    progress.finish()
    if logits is None:
        raise RequestError(exact.label, expected="a model with a head", got="none")
    return ErrorSplit(tuple(layers), logits, kl)


def _exact_results(model: StagedModel, stage: str, prompts: int) -> tuple[list[Array], list[Array | None]]:
    """What a stage computes for each prompt, and what it hands on."""
    results, handed_on = [], []
    with model.open(stage) as opened:
        for prompt in range(prompts):
            values = opened.run(prompt)
            results.append(values[opened.output])
            handed_on.append(values[opened.handed_on])
    return results, list(handed_on)


def _results(model: StagedModel, stage: str, hidden: Sequence[Array | None]) -> tuple[list[Array], list[Array]]:
    """What a stage computes for each prompt from `hidden`, and on its own input."""
    own, propagated = [], []
    with model.open(stage) as opened:
        for prompt, given in enumerate(hidden):
            propagated.append(opened.run(prompt)[opened.output])
            own.append(propagated[-1] if given is None else opened.run(prompt, given)[opened.output])
    return own, propagated


def _split(stage: str, names: Sequence[str], exact: Sequence[Array], runs: Sequence[Sequence[Array]]) -> CauseSplit:
    """Over all prompts, in float64."""
    size = total = 0.0
    steps, along = np.zeros(len(names)), np.zeros(len(names))
    for prompt, first in enumerate(exact):
        chain = [np.asarray(first, np.float64).ravel(), *(np.asarray(run[prompt], np.float64).ravel() for run in runs)]
        whole = chain[-1] - chain[0]
        size += float(chain[0] @ chain[0])
        total += float(whole @ whole)
        for place in range(len(names)):
            step = chain[place + 1] - chain[place]
            steps[place] += step @ step
            along[place] += step @ whole
    causes = (
        Cause(name, _root_ratio(steps[place], size), float(along[place] / total) if total else 0.0)
        for place, name in enumerate(names)
    )
    return CauseSplit(stage, _root_ratio(total, size), tuple(causes))


def _root_ratio(square: float, whole: float) -> float:
    return float(np.sqrt(square / whole)) if whole else float(square > 0)


def _mean_kl(exact: Sequence[Array], got: Sequence[Array]) -> float:
    pairs = zip(exact, got, strict=True)
    found = [kl_divergence(log_softmax(mine), log_softmax(other)) for mine, other in pairs]
    return float(np.concatenate(found).mean())
