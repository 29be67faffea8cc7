"""`dsv3export kernels test`: the plugins' kernels against the definitions of their ops."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import json_option, verbose_option
from dsv3export.cli.tables import counted, print_json, print_table
from dsv3export.errors import RequestError

if TYPE_CHECKING:
    from dsv3export.plugins.kernels.checks import Check, Outcome

EXAMPLES = (
    "dsv3export kernels test",
    "dsv3export kernels test --on gpu",
    "dsv3export kernels test --op LinearFp8Block --json",
)
# The interpreter takes what a target's kernels are: this one has float8 and is what data centres have.
_INTERPRETED = 90


@click.command("test", cls=Command, examples=EXAMPLES)
@click.option(
    "--on",
    "where",
    type=click.Choice(("interpreter", "gpu")),
    default="interpreter",
    show_default=True,
    help="Triton's interpreter on the CPU, or what TensorRT would launch, on the first GPU.",
)
@click.option("--op", "name", metavar="OP", help="Only the checks of this op.")
@json_option("Print one line of JSON.")
@verbose_option
@click.pass_context
def command(ctx: click.Context, where: str, name: str | None, as_json: bool) -> None:
    """Run the plugins' kernels on random tensors and compare with the definitions of their ops.

    Prints the distance ||result - definition|| / ||definition|| of each case, and ends with exit code 1 if one is
    beyond its tolerance. On a GPU every tactic is tried; the interpreter takes a different one for each type.
    """
    from dsv3export.plugins.kernels.catalogue import CHECKS
    from dsv3export.plugins.kernels.checks import run_checks

    checks = _chosen(CHECKS, name)
    if where == "gpu":
        from dsv3export.plugins.kernels.launcher import Launcher
        from dsv3export.runtime.device import Device

        launcher = Launcher(Device())
        outcomes = list(run_checks(checks, launcher.run, launcher.capability, every_tile=True))
    else:
        from dsv3export.plugins.kernels.interpreter import interpret, start_interpreting

        start_interpreting()
        outcomes = list(run_checks(checks, interpret, _INTERPRETED, every_tile=False))
    _print(outcomes, as_json)
    if not all(outcome.passed for outcome in outcomes):
        ctx.exit(1)


def _chosen(checks: tuple[Check, ...], name: str | None) -> tuple[Check, ...]:
    ops = sorted({check.op for check in checks})
    if name is not None and name not in ops:
        raise RequestError(f"--op {name}", expected=f"one of {', '.join(ops)}", got=name)
    return tuple(check for check in checks if name in (None, check.op))


def _print(outcomes: list[Outcome], as_json: bool) -> None:
    if as_json:
        # JSON has no infinity.
        rows = [
            {**asdict(outcome), "error": min(outcome.error, 1e300), "passed": outcome.passed} for outcome in outcomes
        ]
        print_json({"checks": rows})
        return
    failed = sum(not outcome.passed for outcome in outcomes)
    print_table(
        f"{counted(len(outcomes), 'check')}, {failed} failed",
        ("op", "case", "type", "tactic", "distance", "allowed", "seconds", "passed"),
        [
            (
                outcome.op,
                outcome.name,
                outcome.dtype,
                outcome.tile + 1,
                f"{outcome.error:.1e}",
                f"{outcome.tolerance:.0e}",
                f"{outcome.seconds:.2f}",
                "yes" if outcome.passed else "NO",
            )
            for outcome in outcomes
        ],
        right=("tactic", "distance", "allowed", "seconds"),
    )
