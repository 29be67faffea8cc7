"""Tolerance profiles: by how much a right engine of some arithmetic differs from a golden.

`profiles.json`, which `benchmarks/golden_profiles.py` makes, has the noise that was measured and the bounds that follow
from it. A golden may carry profiles of its own, which `golden calibrate --write` measures on its own model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from dsv3export.compare.json_form import from_json
from dsv3export.errors import RequestError
from dsv3export.golden.document import Bound, Identity, Profile
from dsv3export.recipe import Recipe

DEFAULT_MARGIN = 4.0
_SAME = "same-"
# Goldens hold float32. An error of its last places may be seen in another run even where none was in these.
_STORED = 2.0**-20


def arithmetic(recipe: Recipe) -> str:
    """A recipe in short: ``int4``, or ``fp32+cache-fp8`` with another cache format."""
    return recipe.precision if recipe.cache == "fp32" else f"{recipe.precision}+cache-{recipe.cache}"


def profile_name(golden: Identity, model: Identity) -> str:
    """The profile to be used for a model. Raises RequestError where none can be told."""
    if golden.recipe == model.recipe:
        return _SAME + golden.arithmetic
    if golden.arithmetic == "fp32":
        return model.arithmetic
    raise RequestError(
        "profile",
        expected=f"a model of the golden's arithmetic ({golden.arithmetic}), or a golden recorded in fp32",
        got=model.arithmetic,
        fix="Name one with --profile, or record the golden from the checkpoint.",
    )


def find_profile(name: str, own: Sequence[Profile]) -> tuple[Profile, str]:
    """The profile of that name, and where it was found: the golden's own ones go before those of the program.

    ``int4+cache-fp8`` is the sum of both where it has not been measured as such: two causes of error add up to no
    more. Raises RequestError.
    """
    for known, where in ((own, "measured for this golden"), (shipped(), "of the program")):
        found = next((profile for profile in known if profile.name == name), None)
        if found is not None:
            return found, where
    prefix = _SAME if name.startswith(_SAME) else ""
    parts = [prefix + part for part in name.removeprefix(_SAME).split("+")]
    by_name = {profile.name: profile for profile in shipped()}
    if len(parts) > 1 and all(part in by_name for part in parts):
        return _sum(name, [by_name[part] for part in parts]), "of the program, added up"
    names = sorted({profile.name for profile in (*own, *shipped())})
    raise RequestError(
        "profile", expected=f"one of {', '.join(names)}", got=name,
        fix="`dsv3export golden calibrate` measures another one.",
    )  # fmt: skip


@cache
def shipped() -> tuple[Profile, ...]:
    """Those of the program."""
    text = files("dsv3export.golden").joinpath("profiles.json").read_text(encoding="utf-8")
    return tuple(from_json(Profile, value, f"profiles.json[{place}]") for place, value in enumerate(json.loads(text)))


def make_profile(name: str, noise: Iterable[tuple[str, float]], runs: Sequence[str], margin: float) -> Profile:
    """Bounds from what was measured of right programs: (metric, noise), each as often as it was seen."""
    seen: dict[str, list[float]] = {}
    for metric, value in noise:
        seen.setdefault(metric, []).append(value)
    bounds = tuple(_bound(metric, sorted(values), margin) for metric, values in sorted(seen.items()))
    return Profile(name, margin, tuple(runs), bounds)


def _bound(metric: str, values: list[float], margin: float) -> Bound:
    largest = values[-1]
    return Bound(
        metric, rounded_up(max(margin ** _power(metric) * largest, _STORED)), len(values), _quantile(values, 0.5),
        _quantile(values, 0.99), largest,
    )  # fmt: skip


def _power(metric: str) -> int:
    """How a metric grows with the error: a divergence with its square."""
    return 2 if metric.partition(".")[2].startswith("kl") else 1


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1]


def rounded_up(value: float) -> float:
    """To two significant digits, upwards."""
    if not 0 < value < math.inf:
        return value
    exponent = math.floor(math.log10(value)) - 1
    return float(f"{math.ceil(round(value / 10.0**exponent, 9))}e{exponent}")


def _sum(name: str, parts: Sequence[Profile]) -> Profile:
    by_metric: dict[str, list[Bound]] = {}
    for bound in (bound for part in parts for bound in part.bounds):
        by_metric.setdefault(bound.metric, []).append(bound)
    bounds = [_sum_of_bounds(metric, each) for metric, each in by_metric.items() if len(each) == len(parts)]
    return Profile(name, parts[0].margin, tuple(run for part in parts for run in part.runs), tuple(bounds))


def _sum_of_bounds(metric: str, bounds: Sequence[Bound]) -> Bound:
    power = _power(metric)
    added = [
        sum(value ** (1 / power) for value in values) ** power
        for values in zip(*((each.bound, each.median, each.p99, each.largest) for each in bounds), strict=True)
    ]
    return Bound(metric, rounded_up(added[0]), min(each.values for each in bounds), *added[1:])
