"""`dsv3export golden check`: a model against a golden, for people and for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.command import Command
from dsv3export.cli.golden.options import checkpoint_recipe, model_options
from dsv3export.cli.options import PathName, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import counted, print_facts, print_table

if TYPE_CHECKING:
    from dsv3export.golden.results import Case, CheckResult
    from dsv3export.runtime.providers import Choice

EXAMPLES = (
    "dsv3export golden check tiny.engine model.golden",
    "dsv3export golden check int4.engine model.golden --profile int4 --without-layers",
)


@click.command("check", cls=Command, examples=EXAMPLES)
@click.argument("model", type=PathName())
@click.argument("golden", type=PathName(path_type=Path))
@click.option("--profile", metavar="NAME", help="Bounds, e.g. int4.  [default: by the arithmetic of model and golden]")
@click.option("--without-layers", is_flag=True, help="Leave out what goes on inside: an engine needs no torch then.")
@model_options
@quiet_option
@verbose_option
def command(
    model: str,
    golden: Path,
    profile: str | None,
    without_layers: bool,
    precision: str | None,
    calibration: Path | None,
    threads: int | None,
    provider: Choice,
    batch: int,
    chunk: int,
    quiet: bool,
) -> None:
    """Hold MODEL, an engine or a checkpoint, against GOLDEN.

    Every figure that the golden has is compared: tokens, each layer, routers' choices, log-probabilities, the greedy
    continuation, perplexity. The exit code is 0 where all are within their bounds, 1 where one is not, and 2 where
    nothing could be compared. A checkpoint is computed in the golden's own arithmetic unless --precision is given.
    """
    from dsv3export.cli.golden.models import open_model
    from dsv3export.golden import Batching, Golden, check_golden
    from dsv3export.golden.profile import find_profile, profile_name

    opened = Golden.read(golden)
    document = opened.document
    layers = bool(document.values) and not without_layers
    subject = open_model(
        model, recipe=checkpoint_recipe(precision, calibration is not None, document.identity.recipe),
        calibration=calibration, threads=threads, provider=provider, layers=layers,
    )  # fmt: skip
    name = profile or profile_name(document.identity, subject.identity)
    bounds, where = find_profile(name, document.profiles)
    with progress_on_stderr(quiet) as progress:
        result = check_golden(
            opened, subject if layers else subject.without_stages(), bounds,
            label=str(golden), batching=Batching(batch, chunk), progress=progress,
        )  # fmt: skip
    show(result, where)
    if not result.passed:
        raise click.exceptions.Exit(1)


def show(result: CheckResult, where: str) -> None:
    """Prints a result for people: the verdict, and of each metric the worst case."""
    facts = [
        ("golden", result.golden),
        ("model", result.model),
        ("profile", f"{result.profile} ({where})"),
        *(("note", note) for note in result.notes),
        *(("not compared", reason) for reason in result.skipped),
    ]
    print_facts("Compared", facts)
    rows = [_row(case, len(result.by_metric()[case.measured.metric])) for case in result.worst()]
    print_table(
        "Worst of each metric", ("metric", "worst", "bound", "", "where", "cases"), rows, ("worst", "bound", "cases")
    )
    first = result.first_failure
    if first is None:
        ties = sum(case.measured.ties for case in result.cases)
        print_facts("Passed", [("cases", f"{counted(len(result.cases), 'case')}, {counted(ties, 'tie')}")])
    else:
        count = f"{len(result.failures):,} of {counted(len(result.cases), 'case')}"
        print_facts("FAILED", [("cases", count), ("first", case_text(first))])


def case_text(case: Case) -> str:
    """One line: what, how much, where, and both values."""
    measured = case.measured
    text = f"{case.name} {measured.value:.3g}, bound {case.bound:.3g}"
    place = place_text(case)
    return f"{text}; {place}" if place else text


def place_text(case: Case) -> str:
    """``prompt 2, position 7, index 3: expected 0.5, got 0.7``."""
    measured, place = case.measured, case.measured.place
    parts = [] if measured.prompt is None else [f"prompt {measured.prompt}"]
    if place is not None:
        parts.append(f"{'step' if measured.metric.startswith('greedy') else 'position'} {place.position}")
        if place.index is not None:
            parts.append(f"{'token' if measured.layer is None else 'index'} {place.index}")
    text = ", ".join(parts)
    if place is not None:
        text = f"{text}: expected {_shown(place.expected)}, got {_shown(place.got)}"
    return f"{text} ({measured.note})" if measured.note else text


def _row(case: Case, count: int) -> tuple[str, ...]:
    measured = case.measured
    where = "" if measured.prompt is None else f"prompt {measured.prompt}"
    if measured.layer is not None:
        where = f"{measured.layer}, {where}"
    verdict = "FAILED" if case.failed else "tie" if measured.ties else "ok"
    return measured.metric, f"{measured.value:.2e}", f"{case.bound:.2e}", verdict, where, f"{count:,}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
