"""The plan of an engine for several ranks, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsv3export.cli.tables import bytes_text, print_table

if TYPE_CHECKING:
    from dsv3export.engine.parallel import Parallel, RankPlan, Traffic

_NUMBERS = ("weights", "cache per token", "sent per token")


def ranks_facts(parallel: Parallel) -> dict[str, Any]:
    """As in engine.json, and what leaves each rank for a token that has logits, as in decoding."""
    facts = parallel.to_json()
    for entry, plan in zip(facts["ranks"], parallel.ranks, strict=True):
        entry["sent_bytes_per_token"] = float(plan.sent_per_token())
    return facts


def show_ranks(parallel: Parallel) -> None:
    """A row for each rank; ranks that have the same figures share one."""
    rows: list[tuple[list[int], tuple[str, ...]]] = []
    for plan in parallel.ranks:
        cells = _cells(plan)
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(plan.rank)
        else:
            rows.append(([plan.rank], cells))
    table = [(_numbers(ranks), *cells) for ranks, cells in rows]
    columns = ("ranks", "layers", *_NUMBERS, "from")
    print_table(f"Ranks: {parallel.layout.describe()}", columns, table, right=_NUMBERS)


def _cells(plan: RankPlan) -> tuple[str, ...]:
    begin, end = plan.layers
    return (
        f"{begin}-{end - 1}" if end - begin > 1 else str(begin),
        bytes_text(plan.weight_bytes),
        bytes_text(plan.cache_bytes_per_token),
        bytes_text(round(plan.sent_per_token())),
        " + ".join(_formula(each) for each in plan.traffic if each.sends) or "nothing",
    )


def _formula(traffic: Traffic) -> str:
    """E.g. `29 x 2 x 7/8 x 28,672 (all_reduce)`."""
    ring = f"2 x {traffic.ranks - 1}/{traffic.ranks} x " if traffic.op == "all_reduce" else ""
    count = f"{traffic.per_step} x " if traffic.per_step > 1 else ""
    return f"{count}{ring}{traffic.bytes_per_row:,} ({traffic.op})"


def _numbers(ranks: list[int]) -> str:
    return f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
