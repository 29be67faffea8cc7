"""The whole: units measured one at a time, ranked, and the mix that meets a target, measured itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

from dsv3export.config import ModelConfig
from dsv3export.errors import InternalError
from dsv3export.evaluate import Comparison
from dsv3export.progress import NoProgress, Progress
from dsv3export.recipe import Precision, Recipe, Scheme
from dsv3export.sensitivity.journal import Measurement, MeasurementJournal
from dsv3export.sensitivity.results import Study, Trial, Whole
from dsv3export.sensitivity.search import Choice, Mix, Option, Target, best, search, total_kl
from dsv3export.sensitivity.sizes import UnitSizes
from dsv3export.sensitivity.units import Unit, folded, model_units, with_units

# Of a budget, what is kept for measuring mixes.
_MIXES, _MIX_TIME = 3, 0.2


@dataclass(frozen=True)
class Budget:
    """How much may be run: recipes over the whole text, and seconds of that. What a journal knows counts as well."""

    evaluations: float = math.inf
    seconds: float = math.inf


class Search:
    """Runs a study.

    Args:
        precisions: What a unit may have; the first is what a unit gets that the budget did not suffice for.
        calibrated: Whether integers are fitted to a calibration text.
        measure: Compares a recipe with float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        precisions: Sequence[Precision],
        calibrated: bool,
        layer_groups: int,
        budget: Budget,
        journal: MeasurementJournal,
        measure: Callable[[Recipe], Comparison],
        progress: Progress | None = None,
    ) -> None:
        self._config, self._precisions = config, precisions
        self._presets = {name: Recipe.for_precision(name, calibrated) for name in precisions}
        self._units = model_units(config, layer_groups)
        self._budget, self._journal, self._measure = budget, journal, measure
        self._progress = progress or NoProgress()
        self._used, self._seconds = 0, 0.0
        self._float32 = Recipe.for_precision("fp32")
        self._sizes = UnitSizes(config, {**self._presets, "fp32": self._float32})

    def run(self, target: Target | None) -> Study:
        """The study; without a target no mix is chosen."""
        self._progress.start("measuring", self._expected(target), "recipes")
        uniform = [whole for name in self._precisions if (whole := self._uniform(name)) is not None]
        measured = self._trials()
        chosen = None if target is None else self._mix(measured, uniform, target)
        self._progress.finish()
        trials = [self._trial(unit, option, measured.get((unit, option.precision)))
                  for unit in self._units for option in self._schemes[unit]]  # fmt: skip
        trials.sort(key=lambda trial: (trial.measured is None, -trial.harm))
        study = Study(self._sizes.whole("fp32"), tuple(trials), tuple(uniform))
        if target is None or chosen is None:
            return study
        recipe = self._recipe(chosen.choice)
        known = self._journal.get(recipe)
        if known is None:
            raise InternalError("a mix was chosen that was not measured")
        choice = tuple((unit.name, option.precision) for unit, option in chosen.choice.items())
        return replace(
            study, max_kl=target.max_kl, max_bytes=target.max_bytes, choice=choice, met=chosen.meets(target),
            recipe=recipe, mix=Whole("mix", chosen.nbytes, chosen.predicted_kl, known),
        )  # fmt: skip

    @cached_property
    def _schemes(self) -> dict[Unit, list[Option]]:
        """Each unit's options by precision, without their divergence; equal schemes once."""
        found: dict[Unit, list[Option]] = {}
        for unit in self._units:
            schemes: dict[Scheme, Precision] = {}
            for name in self._precisions:
                schemes.setdefault(self._presets[name].components[unit.component], name)
            found[unit] = [Option(name, scheme, self._sizes.unit(unit, name), math.nan)
                           for scheme, name in schemes.items()]  # fmt: skip
        return found

    def _uniform(self, precision: Precision) -> Whole | None:
        recipe = self._presets[precision]
        measured = self._measured(recipe)
        return None if measured is None else Whole(precision, self._sizes.whole(precision), None, measured)

    def _trials(self) -> dict[tuple[Unit, Precision], Measurement]:
        """Of as many units as the budget allows, the largest ones; each at all of its options or not at all."""
        found: dict[tuple[Unit, Precision], Measurement] = {}
        for unit in self._within_budget():
            of_unit: dict[tuple[Unit, Precision], Measurement] = {}
            for option in self._schemes[unit]:
                if self._seconds > self._budget.seconds * (1 - _MIX_TIME):
                    return found
                measured = self._measured(with_units(self._float32, {unit: option.scheme}))
                if measured is None:
                    return found
                of_unit[unit, option.precision] = measured
            found |= of_unit
        return found

    def _within_budget(self) -> Iterable[Unit]:
        """In the order of computation, in which the float32 model runs along once; for a time limit by size."""
        by_size = sorted(self._units, key=lambda unit: -self._sizes.unit(unit, "fp32"))
        if math.isfinite(self._budget.seconds):
            return by_size
        left, taken = self._budget.evaluations - self._used - _MIXES, set()
        for unit in by_size:
            if len(self._schemes[unit]) <= left:
                left -= len(self._schemes[unit])
                taken.add(unit)
        return [unit for unit in self._units if unit in taken]

    def _mix(
        self, measured: dict[tuple[Unit, Precision], Measurement], uniform: Sequence[Whole], target: Target
    ) -> Mix | None:
        options = {unit: [replace(option, kl=measured[unit, option.precision].kl) for option in each]
                   for unit, each in self._schemes.items() if (unit, each[0].precision) in measured}  # fmt: skip
        unknown = [unit for unit in self._units if unit not in options]
        first = math.fsum(
            measured[unit, each[0].precision].kl for unit, each in self._schemes.items() if unit in options
        )
        rest = max(uniform[0].measured.kl - first, 0.0) if uniform else 0.0
        for unit in unknown:
            options[unit] = [replace(self._schemes[unit][0], kl=rest / len(unknown))]
        in_order = {unit: options[unit] for unit in self._units}
        fixed = self._sizes.whole(self._precisions[0]) - sum(each[0].nbytes for each in self._schemes.values())
        tried = search(in_order, target, fixed, self._measured_kl, self._ratio(in_order, uniform))
        return best(tried, target)

    def _ratio(self, options: dict[Unit, list[Option]], uniform: Sequence[Whole]) -> float:
        """Measured to added-up divergence of the last precision throughout."""
        added = total_kl({unit: each[-1] for unit, each in options.items()})
        complete = len(uniform) == len(self._precisions) and all(len(each) == len(self._schemes[unit])
                                                                 for unit, each in options.items())  # fmt: skip
        return uniform[-1].measured.kl / added if complete and added > 0 and uniform[-1].measured.kl > 0 else 1.0

    def _measured_kl(self, choice: Choice) -> float | None:
        measured = self._measured(self._recipe(choice))
        return None if measured is None else measured.kl

    def _recipe(self, choice: Choice) -> Recipe:
        """What to build: named after the precision that most layers have."""
        votes = Counter[Precision]()
        for unit, option in choice.items():
            votes[option.precision] += max(len(unit.layers), 1)
        base = self._presets[votes.most_common(1)[0][0]]
        return folded(with_units(base, {unit: option.scheme for unit, option in choice.items()}), self._config)

    def _measured(self, recipe: Recipe) -> Measurement | None:
        """From the journal, or run; None where the budget is spent."""
        known = self._journal.get(recipe)
        if known is None:
            if self._used >= self._budget.evaluations or self._seconds >= self._budget.seconds:
                return None
            start = perf_counter()
            compared = self._measure(recipe)
            known = Measurement(
                compared.kl_mean, compared.kl_error, compared.kl_max, compared.perplexity_ratio,
                compared.top1_agreement, perf_counter() - start,
            )  # fmt: skip
            self._journal.add(recipe, known)
        elif self._used >= self._budget.evaluations:
            return None
        self._used += 1
        self._seconds += known.seconds
        self._progress.advance(1)
        return known

    def _expected(self, target: Target | None) -> int:
        trials = sum(map(len, self._schemes.values())) + len(self._precisions) + (_MIXES if target else 0)
        return int(min(trials, self._budget.evaluations))

    def _trial(self, unit: Unit, option: Option, measured: Measurement | None) -> Trial:
        saved = self._sizes.unit(unit, "fp32") - option.nbytes
        return Trial(
            unit.name, unit.component, unit.layers, option.precision, option.scheme.describe(), saved, measured
        )
