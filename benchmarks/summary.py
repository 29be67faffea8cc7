"""From raw runs to figures: medians, spreads, ratios, shares of what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.limits import Limits
from benchmarks.subjects import OURS

CLOCKS = ("wall", "cpu")
_BYTES_PER_FLOAT32 = 4
_FLOP_PER_PARAMETER = 2  # a multiplication and an addition

Run = Mapping[str, Any]
Figures = dict[str, float]


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def figures(run: Run, prompt_tokens: int, new_tokens: int) -> Figures:
    """One run of a worker as figures; of its passes the median counts."""
    found: Figures = {}
    for clock in CLOCKS:
        found[f"prefill_tokens_per_s_{clock}"] = prompt_tokens / median(span[clock] for span in run["prefill"])
        found[f"decode_tokens_per_s_{clock}"] = new_tokens / median(span[clock] for span in run["decode"])
        found[f"ready_s_{clock}"] = run["ready"][clock]
    found["peak_rss_gb"] = run["peak_rss_bytes"] / 1e9
    found["anonymous_rss_gb"] = run["anonymous_rss_bytes"] / 1e9
    return found


def summarise(runs: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """Spread of each figure over the repeats, and of its ratio ours / theirs, repeat by repeat."""
    subjects = {subject: _spreads(repeats) for subject, repeats in runs.items()}
    ratios = {}
    for subject, repeats in runs.items():
        if subject != OURS:
            pairs = zip(runs[OURS], repeats, strict=True)
            ratios[subject] = _spreads([{name: mine[name] / theirs[name] for name in mine} for mine, theirs in pairs])
    return {"subjects": subjects, "ratios": ratios}


def shares_of_limits(ours: Mapping[str, Mapping[str, float]], limits: Limits, active_parameters: int) -> Figures:
    """How much of the machine's measured best our engine uses, 1.0 being all of it.

    A decoded token needs each active float32 weight once from memory; a prefilled token multiplies by each once. What
    attention reads and computes beyond its weights (1 % at 128 tokens) is left out.
    """
    decoded, prefilled = (ours[f"{phase}_tokens_per_s_wall"]["median"] for phase in ("decode", "prefill"))
    read = decoded * active_parameters * _BYTES_PER_FLOAT32
    computed = prefilled * active_parameters * _FLOP_PER_PARAMETER
    return {
        "decode_of_read_bandwidth": read / limits.read_bytes_per_second,
        "prefill_of_matmul": computed / limits.float32_flop_per_second,
    }


def _spreads(repeats: Sequence[Figures]) -> dict[str, dict[str, float]]:
    return {name: asdict(Spread.of([repeat[name] for repeat in repeats])) for name in repeats[0]}
