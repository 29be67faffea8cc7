"""`dsv3export golden check`: a model against a golden, for people and for CI."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.command import Command
from dsv3export.cli.golden.options import ModelOptions, model_options
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.launch import RankOptions, ranks_options, take_place
from dsv3export.cli.options import PathName, quiet_option, verbose_option
from dsv3export.cli.outputs import check_outputs
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import counted, print_facts, print_table

if TYPE_CHECKING:
    from dsv3export.golden.results import Case, CheckResult

EXAMPLES = (
    "dsv3export golden check tiny.engine model.golden",
    "dsv3export golden check int4.engine model.golden --junit golden.xml --github",
    "dsv3export golden check int4.engine model.golden --profile int4 --without-layers",
    "dsv3export golden check cut.engine model.golden --nproc 2",
)


@click.command("check", cls=Command, examples=EXAMPLES)
@click.argument("model", type=PathName())
@click.argument("golden", type=PathName(path_type=Path))
@click.option("--profile", metavar="NAME", help="Bounds, e.g. int4.  [default: by the arithmetic of model and golden]")
@click.option("--without-layers", is_flag=True, help="Leave out what goes on inside: an engine needs no torch then.")
@click.option("--junit", type=PathName(path_type=Path), metavar="FILE", help="Write JUnit XML for CI servers.")
@click.option("--json", "json_file", type=PathName(path_type=Path), metavar="FILE", help="Write every figure as JSON.")
@click.option("--html", type=PathName(path_type=Path), metavar="FILE", help="Write a page that needs nothing else.")
@click.option("--github", is_flag=True, help="Print workflow commands: annotations in GitHub Actions.")
@model_options
@ranks_options
@quiet_option
@verbose_option
def command(
    model: str,
    golden: Path,
    profile: str | None,
    without_layers: bool,
    junit: Path | None,
    json_file: Path | None,
    html: Path | None,
    github: bool,
    running: ModelOptions,
    ranks: RankOptions,
    quiet: bool,
) -> None:
    """Hold MODEL, an engine or a checkpoint, against GOLDEN.

    Every figure that the golden has is compared: tokens, each layer, routers' choices, log-probabilities, the greedy
    continuation, perplexity. The exit code is 0 where all are within their bounds, 1 where one is not, and 2 where
    nothing could be compared. A checkpoint is computed in the golden's own arithmetic unless --precision is given.
    Of an engine for several ranks (--nproc) what goes on inside is left out.
    """
    from dsv3export.golden import Golden, check_golden
    from dsv3export.golden.profile import find_profile, profile_name

    check_outputs(junit, json_file, html)
    opened = Golden.read(golden)
    over_ranks = take_place(Path(model), ranks, running.threads, running.cpu_kernels)
    document = opened.document
    layers = bool(document.values) and not without_layers and not over_ranks
    subject = replace(running, timeouts=ranks.timeouts).open(model, opened, layers)
    name = profile or profile_name(document.identity, subject.identity)
    bounds, where = find_profile(name, document.profiles)
    with progress_on_stderr(quiet) as progress:
        result = check_golden(
            opened, subject if layers else subject.without_stages(), bounds,
            label=str(golden), batching=running.batching, progress=progress,
        )  # fmt: skip
    write_reports(result, junit, json_file, html)
    show(result, where)
    if github:
        from dsv3export.golden.github import github_annotations

        click.echo(github_annotations(result))
    if not result.passed:
        raise click.exceptions.Exit(1)


def write_reports(result: CheckResult, junit: Path | None, json_file: Path | None, html: Path | None) -> None:
    """The files that were asked for. Raises UserError."""
    if junit is not None:
        from dsv3export.golden.junit import junit_xml

        write_atomically(junit, junit_xml(result))
    if json_file is not None:
        write_atomically(json_file, result_json(result))
    if html is not None:
        from dsv3export.golden.page import check_page

        write_atomically(html, check_page(result))


def result_json(result: CheckResult) -> bytes:
    """Everything, and the verdict."""
    from dsv3export.compare.json_form import to_json

    verdict = {"passed": result.passed, "first_failure": to_json(result.first_failure)}
    return json.dumps(verdict | to_json(result), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def show(result: CheckResult, where: str) -> None:
    """Prints a result for people: the verdict, and of each metric the worst case."""
    from dsv3export.golden.texts import case_text

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


def _row(case: Case, count: int) -> tuple[str, ...]:
    measured = case.measured
    where = "" if measured.prompt is None else f"prompt {measured.prompt}"
    if measured.layer is not None:
        where = f"{measured.layer}, {where}"
    verdict = "FAILED" if case.failed else "tie" if measured.ties else "ok"
    return measured.metric, f"{measured.value:.2e}", f"{case.bound:.2e}", verdict, where, f"{count:,}"
