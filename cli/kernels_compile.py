"""`dsv3export kernels compile`: what each kernel becomes for each GPU."""

from __future__ import annotations

from typing import Any

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import json_option, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import print_json, print_table
from dsv3export.errors import RequestError

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
    "held",
    "wide loads",
    "matrix instructions",
    "step",
    "programs",
    "floor",
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
    bytes of shared memory of a program, how many programs a multiprocessor holds, loads of 16 bytes out of all loads,
    the instructions that multiply matrices, and how many of all kinds a warp issues in a step of the loop around them.
    Then the programs that the shapes make, and the time that they take at least on a device of the target (A100,
    RTX 4090, H100, B200, RTX 5090), by the bytes that move and the products. What is compiled is kept in a cache,
    $DSV3EXPORT_KERNEL_CACHE or one below the user's cache folder.
    """
    from dsv3export.plugins.kernels.cache import compile_all
    from dsv3export.plugins.kernels.catalogue import USES, launches
    from dsv3export.plugins.kernels.compiler import TARGETS
    from dsv3export.plugins.kernels.table import figures

    chosen = _targets(targets, TARGETS)
    wanted = [(use, launch, target) for target in chosen for use in USES for launch in launches(use, target)]
    if name is not None:
        names = sorted({launch.build.name for _, launch, _ in wanted})
        if name not in names:
            raise RequestError(f"--kernel {name}", expected=f"one of {', '.join(names)}", got=name)
        wanted = [each for each in wanted if each[1].build.name == name]
    with progress_on_stderr(quiet) as progress:
        made = compile_all([(launch.build, target) for _, launch, target in wanted], jobs, progress)
    rows = [figures(*each, kernel) for each, kernel in zip(wanted, made, strict=True)]
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
                row["programs_a_processor"],
                f"{row['wide_loads']}/{row['wide_loads'] + row['narrow_loads']}",
                ", ".join(f"{count} {kind}" for kind, count in row["matrix_instructions"].items()),
                row["step_instructions"],
                row["programs"],
                f"{row['floor_microseconds']:.1f} us",
            )
            for row in rows
        ],
        right=(
            "warps",
            "stages",
            "PTX",
            "registers",
            "spilled",
            "shared",
            "held",
            "wide loads",
            "step",
            "programs",
            "floor",
        ),
    )
