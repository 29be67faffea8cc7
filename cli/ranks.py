"""The plan of an engine for several ranks, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsv3export.cli.tables import bytes_text, counted, print_facts, print_table
from dsv3export.cli.units import decimal_bytes, time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.engine.parallel import Layout, Parallel, RankPlan, Traffic
    from dsv3export.sizing.step_time import Links, StepTime

_NUMBERS = ("weights", "cache per token", "sent per token")


def ranks_facts(parallel: Parallel) -> dict[str, Any]:
    """As in engine.json, and what leaves each rank for a token that has logits, as in decoding."""
    facts = parallel.to_json()
    for entry, plan in zip(facts["ranks"], parallel.ranks, strict=True):
        entry["sent_bytes_per_token"] = float(plan.sent_per_token())
    return facts


def show_ranks(layout: Layout, ranks: Sequence[RankPlan]) -> None:
    """A row for each rank; ranks that have the same figures share one."""
    rows: list[tuple[list[int], tuple[str, ...]]] = []
    for plan in ranks:
        cells = _cells(plan)
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(plan.rank)
        else:
            rows.append(([plan.rank], cells))
    table = [(_numbers(ranks), *cells) for ranks, cells in rows]
    columns = ("ranks", "layers", *_NUMBERS, "from")
    print_table(f"Ranks: {layout.describe()}", columns, table, right=_NUMBERS)


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


def step_facts(step: StepTime) -> dict[str, Any]:
    """JSON-able: what each rank holds and sends, and the times of a decode step in seconds."""
    facts = asdict(step)
    for entry, plan in zip(facts["ranks"], step.ranks, strict=True):
        entry["sent_bytes_per_token"] = float(plan.sent_per_token())
    for entry, stage in zip(facts["stages"], step.stages, strict=True):
        entry["seconds"] = stage.seconds
    return {**facts, "seconds": step.seconds, "tokens_per_second": step.tokens_per_second}


def show_step(step: StepTime, links: Links, usable: int) -> None:
    """The ranks, and a decode step with its messages."""
    show_ranks(step.layout, step.ranks)
    largest = max(plan.weight_bytes + cache for plan, cache in zip(step.ranks, step.cache_bytes, strict=True))
    verdict = "fits" if step.fits else "does not fit"
    rows = [
        (
            str(place),
            time_text(stage.reading),
            time_text(stage.computing),
            time_text(stage.collectives),
            time_text(stage.sending),
            time_text(stage.seconds),
        )
        for place, stage in enumerate(step.stages)
    ]
    columns = ("stage", "reading", "computing", "collectives", "sending", "all")
    print_table("One decode step of a micro-batch, at best", columns, rows, right=columns[1:])
    near, far = decimal_bytes(links.node_bandwidth), decimal_bytes(links.network_bandwidth)
    waits = time_text(links.node_latency), time_text(links.network_latency)
    print_facts(
        "Step of all ranks: floor",
        [
            ("fullest rank", f"{decimal_bytes(largest)} of weights and cache: {verdict} in {decimal_bytes(usable)}"),
            ("in a machine", f"{links.node_ranks} devices, {near}/s and {waits[0]} a message"),
            ("between machines", f"{far}/s and {waits[1]} a message"),
            ("micro-batches", f"{step.micro_batches}, of {counted(step.batch, 'sequence')}"),
            ("at best", f"{step.tokens_per_second:,.1f} tokens/s, {time_text(step.seconds)} a step"),
        ],
    )  # fmt: skip
