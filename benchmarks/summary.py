"""From raw runs to figures: medians, spreads, ratios, shares of what the machine can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.limits import Limits
from benchmarks.weight_bytes import WeightBytes

CLOCKS = ("wall", "cpu")
_FLOP_PER_PARAMETER = 2  # a multiplication and an addition

Run = Mapping[str, Any]
Figures = dict[str, float]
Spreads = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def figures(run: Run, new_tokens: int) -> Figures:
    """One run of a worker as figures; of its passes the median counts."""
    found: Figures = {}
    for clock in CLOCKS:
        for tokens, spans in run["prefill"].items():
            found[f"prefill_{tokens}_tokens_per_s_{clock}"] = int(tokens) / median(span[clock] for span in spans)
        found[f"decode_tokens_per_s_{clock}"] = new_tokens / median(span[clock] for span in run["decode"])
        found[f"ready_s_{clock}"] = run["ready"][clock]
    found["peak_rss_gb"] = run["peak_rss_bytes"] / 1e9
    found["anonymous_rss_gb"] = run["anonymous_rss_bytes"] / 1e9
    found["resident_gb"] = (run["anonymous_rss_bytes"] + run["file_rss_bytes"]) / 1e9
    return found


def spreads(repeats: Sequence[Figures]) -> Spreads:
    """Of each figure, over the repeats."""
    return {name: asdict(Spread.of([repeat[name] for repeat in repeats])) for name in repeats[0]}


def ratios(runs: Mapping[str, Sequence[Figures]], pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, Spreads]]:
    """Ours / theirs by both names, repeat by repeat; where one ran fewer times than the other, as often as it did."""
    found: dict[str, dict[str, Spreads]] = {}
    for ours, theirs in pairs:
        turns = zip(runs[ours], runs[theirs], strict=False)
        of_turns = [{name: mine[name] / other[name] for name in mine} for mine, other in turns]
        found.setdefault(ours, {})[theirs] = spreads(of_turns)
    return found


def shares_of_limits(found: Mapping[str, Mapping[str, float]], limits: Limits, weights: WeightBytes,
                     active_parameters: int) -> Figures:  # fmt: skip
    """How much of the machine's measured best a subject uses, 1.0 being all of it.

    A decoded token needs the weights that are at work for it once from memory; a prefilled token multiplies by each
    active weight once, compared with float32 products whatever the subject computes in. What attention reads and
    computes beyond its weights (1 % at 128 tokens) is left out.
    """
    read = found["decode_tokens_per_s_wall"]["median"] * weights.per_token
    shares = {"decode_of_read_bandwidth": read / limits.read_bytes_per_second}
    for name, spread in found.items():
        if name.startswith("prefill_") and name.endswith("_wall"):
            computed = spread["median"] * active_parameters * _FLOP_PER_PARAMETER
            phase = name.removesuffix("_tokens_per_s_wall")
            shares[f"{phase}_of_float32_matmul"] = computed / limits.float32_flop_per_second
    return shares
