"""`dsv3export kernels compile`: what each kernel becomes for each GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import json_option, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import print_json, print_table
from dsv3export.errors import RequestError

if TYPE_CHECKING:
    from dsv3export.plugins.kernels.compiler import Compiled
    from dsv3export.plugins.kernels.plugin import Build

EXAMPLES = (
    "dsv3export kernels compile",
    "dsv3export kernels compile --targets sm_90,sm_120 --kernel mla_split",
    "dsv3export kernels compile --targets sm_90 --json | jq .kernels",
)
_COLUMNS = (
    "kernel",
    "target",
    "constants",
    "warps",
    "stages",
    "PTX",
    "registers",
    "spilled",
    "shared",
    "matrix instructions",
)


@click.command("compile", cls=Command, examples=EXAMPLES)
@click.option("--targets", metavar="LIST", help="Compute capabilities.  [default: sm_80,sm_89,sm_90,sm_100,sm_120]")
@click.option("--kernel", "name", metavar="NAME", help="Only this kernel.")
@click.option("--jobs", type=click.IntRange(min=1), help="Kernels compiled at a time; default: one for each core.")
@json_option("Print one line of JSON, with all constants.")
@quiet_option
@verbose_option
def command(targets: str | None, name: str | None, jobs: int | None, as_json: bool, quiet: bool) -> None:
    """Compile the plugins' kernels at DeepSeek-V3's shapes, with no GPU.

    Lists what each becomes: bytes of PTX, registers of a thread and bytes of its stack where they did not suffice,
    bytes of shared memory of a block, and the instructions that multiply matrices. What is compiled is kept in a
    cache, $DSV3EXPORT_KERNEL_CACHE or one below the user's cache folder.
    """
    from dsv3export.plugins.kernels.cache import compile_all
    from dsv3export.plugins.kernels.catalogue import USES, builds
    from dsv3export.plugins.kernels.compiler import TARGETS

    chosen = _targets(targets, TARGETS)
    wanted = [(build, target) for target in chosen for use in USES for build in builds(use, target)]
    if name is not None:
        names = sorted({build.name for build, _ in wanted})
        if name not in names:
            raise RequestError(f"--kernel {name}", expected=f"one of {', '.join(names)}", got=name)
        wanted = [(build, target) for build, target in wanted if build.name == name]
    with progress_on_stderr(quiet) as progress:
        made = compile_all(wanted, jobs, progress)
    rows = [_row(build, target, kernel) for (build, target), kernel in zip(wanted, made, strict=True)]
    if as_json:
        print_json({"kernels": rows})
    else:
        _print(rows)


def _targets(text: str | None, every: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return every
    known = {f"sm_{target}": target for target in every}
    named = [part.strip() for part in text.split(",")]
    for part in named:
        if part not in known:
            raise RequestError("--targets", expected=f"some of {', '.join(known)}, with commas", got=part or "nothing")
    return tuple(dict.fromkeys(known[part] for part in named))


def _row(build: Build, target: int, kernel: Compiled) -> dict[str, Any]:
    return {
        "kernel": build.name,
        "target": f"sm_{target}",
        "arguments": dict(build.arguments),
        "constants": dict(build.constants),
        "warps": build.warps,
        "stages": build.stages,
        "ptx_bytes": len(kernel.ptx),
        "registers": kernel.registers,
        "spilled_bytes": kernel.spilled,
        "shared_bytes": kernel.shared,
        "matrix_instructions": dict(kernel.matrix),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    print_table(
        "Kernels",
        _COLUMNS,
        [
            (
                row["kernel"],
                row["target"],
                " ".join(f"{key}={value}" for key, value in row["constants"].items()),
                row["warps"],
                row["stages"],
                row["ptx_bytes"],
                row["registers"],
                row["spilled_bytes"],
                row["shared_bytes"],
                ", ".join(f"{count} {kind}" for kind, count in row["matrix_instructions"].items()),
            )
            for row in rows
        ],
        right=("warps", "stages", "PTX", "registers", "spilled", "shared"),
    )
