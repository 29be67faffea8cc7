"""Measures the noise of right programs against a golden, which says how large a difference is a fault.

A right program computes the same numbers in another order when it has other threads, other sequences beside it or
other chunks of a prompt; and an engine of another precision computes other numbers, by an amount that is its quality.
Both are measured by the metrics that `check` uses, over all prompts, layers and runs. A bound is the largest times a
margin; of a divergence, which grows with the square of the error, times the margin's square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dsv3export.golden.check import measure, require_same_shape
from dsv3export.golden.document import Profile
from dsv3export.golden.file import Golden
from dsv3export.golden.model import GoldenModel
from dsv3export.golden.outputs import Batching
from dsv3export.golden.profile import DEFAULT_MARGIN, make_profile
from dsv3export.golden.results import EXACT
from dsv3export.progress import NoProgress, Progress

BATCHINGS = (Batching(8, 256), Batching(1, 256), Batching(3, 16))
THREADS = (1, 2)


@dataclass(frozen=True)
class Noise:
    """What was seen: (metric, noise) as often as it was measured, and the runs in words."""

    values: tuple[tuple[str, float], ...]
    runs: tuple[str, ...]

    def __add__(self, other: Noise) -> Noise:
        return Noise(self.values + other.values, self.runs + other.runs)

    def profile(self, name: str, margin: float = DEFAULT_MARGIN) -> Profile:
        """The bounds that follow."""
        return make_profile(name, self.values, self.runs, margin)


def measure_noise(
    golden: Golden,
    opened: Callable[[int | None], GoldenModel],
    threads: Sequence[int | None] = THREADS,
    batchings: Sequence[Batching] = BATCHINGS,
    progress: Progress | None = None,
) -> Noise:
    """Runs a model that is known to be right in several ways.

    Layers and text are run once for each number of threads: nothing else changes them.

    Args:
        opened: The model with so many threads.

    Raises RequestError as `check_golden`.
    """
    values: list[tuple[str, float]] = []
    runs = []
    for count in threads:
        model = opened(count)
        require_same_shape(golden, model.label, model.identity)
        for batching in batchings:
            measured = measure(golden, model, batching, progress or NoProgress(), [])
            values += [(each.metric, each.noise) for each in measured if each.metric != EXACT]
            words = "" if count is None else f", {count} threads"
            runs.append(f"{model.identity.kind} {model.identity.arithmetic}{words}, "
                        f"{batching.slots} slots, chunks of {batching.chunk}")  # fmt: skip
            model = replace(model, stages=None, language_model=None)
    return Noise(tuple(values), tuple(runs))
