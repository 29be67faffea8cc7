"""`dsv3export doctor --conformance`: each op at each precision on this machine's backends, against its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from dsv3export.cli.capabilities import BACKENDS
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import counted, print_json, print_table
from dsv3export.errors import BackendError

if TYPE_CHECKING:
    from dsv3export.graphs.conformance import Report, Verdict

_COLUMNS = ("op", "precision", "phase", "result", "error", "allowed", "build ms", "run ms", "why")
MISMATCH = 1


def report(backend: str | None, quiet: bool, as_json: bool) -> int:
    """Checks and prints; returns the exit code.

    Args:
        backend: None takes every one whose package is there, and says which are not.

    Raises BackendError where the backend that was asked for is not there.
    """
    from dsv3export.graphs.conformance import check_backend
    from dsv3export.graphs.conformance.backends import open_backends

    reports, missing = [], {}
    with progress_on_stderr(quiet) as progress:
        for name in [backend] if backend else BACKENDS:
            try:
                opened = open_backends(name)
            except BackendError as error:
                if backend is not None:
                    raise
                missing[name] = str(error)
                continue
            reports += [check_backend(each, progress) for each in opened]
    failed = sum(found.count("fail") for found in reports)
    if as_json:
        print_json({
            "backends": [_data(found) for found in reports],
            "missing": [{"backend": name, "why": why} for name, why in missing.items()],
            "ok": not failed,
        })  # fmt: skip
    else:
        _print(reports, missing)
    return MISMATCH if failed else 0


def _data(found: Report) -> dict[str, object]:
    counts = {result: found.count(result) for result in ("pass", "fail", "built", "refused")}
    rows = [asdict(row) | {"error": _finite(row.error)} for row in found.rows]
    return {
        "backend": found.backend, "version": found.version, "why_not_run": found.why_not_run, "counts": counts,
        "rows": rows,
    }  # fmt: skip


def _finite(error: float | None) -> float | None:
    """JSON has no infinity; `why` says what it stands for."""
    return None if error is None or not math.isfinite(error) else error


def _print(reports: Sequence[Report], missing: dict[str, str]) -> None:
    for found in reports:
        rows = [_cells(row) for row in found.rows]
        print_table(f"{found.backend} {found.version}", _COLUMNS, rows, right=_COLUMNS[4:8])
        click.echo(f"{found.backend}: {_summary(found)}")
        if found.why_not_run:
            click.echo(f"Nothing was run: {found.why_not_run}")
        click.echo()
    for name, why in missing.items():
        click.echo(f"{name}: not checked: {why}")


def _cells(row: Verdict) -> tuple[str, ...]:
    numbers = (_text(row.error, "{:.1e}"), _text(row.tolerance, "{:.1e}"), _text(row.build_ms, "{:.1f}"))
    why = "" if row.result == "built" else row.why  # the same for all: said once below the table
    return (row.op, row.precision, row.phase, row.result, *numbers, _text(row.run_ms, "{:.2f}"), why)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _summary(found: Report) -> str:
    parts = [
        f"{counted(found.count('pass'), 'row')} right",
        f"{found.count('fail')} wrong",
        f"{found.count('built')} built and not run",
        f"{found.count('refused')} refused",
    ]
    return ", ".join(parts)
