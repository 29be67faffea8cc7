"""`dsv3export golden calibrate`: measures the noise of right programs, and proposes bounds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.capabilities import PRECISIONS
from dsv3export.cli.command import Command
from dsv3export.cli.golden.options import checkpoint_recipe
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.options import (
    PathName,
    cpu_kernels_option,
    json_option,
    provider_option,
    quiet_option,
    verbose_option,
)
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import print_facts, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.golden import Batching, Golden, GoldenModel
    from dsv3export.golden.calibrate import Noise
    from dsv3export.golden.document import Profile
    from dsv3export.progress import Progress
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice

EXAMPLES = (
    "dsv3export golden calibrate fp32.engine model.golden",
    "dsv3export golden calibrate fp32.engine model.golden --against int4.engine --write",
    "dsv3export golden calibrate checkpoint model.golden --batches 1,4 --chunks 64 --margin 3 --json",
)


@click.command("calibrate", cls=Command, examples=EXAMPLES)
@click.argument("model", type=PathName())
@click.argument("golden", type=PathName(path_type=Path))
@click.option(
    "--against",
    type=PathName(),
    multiple=True,
    metavar="ENGINE",
    help="Another engine known to be right, whose precision gets a profile too; may be given several times.",
)
@click.option("--threads", default="1,2", show_default=True, metavar="N,N", help="Threads to run an engine with.")
@click.option("--batches", default="8,1", show_default=True, metavar="N,N", help="Prompts computed at once.")
@click.option("--chunks", default="256,16", show_default=True, metavar="N,N", help="Tokens of a prompt at once.")
@click.option(
    "--margin",
    type=click.FloatRange(min=1),
    default=4.0,
    show_default=True,
    help="A bound is the largest noise times this; of a divergence, times its square.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="What a checkpoint is computed in.")
@click.option("--write", is_flag=True, help="Put the profiles into GOLDEN, where `check` prefers them.")
@click.option("--without-layers", is_flag=True, help="Leave out what goes on inside: an engine needs no torch then.")
@provider_option
@cpu_kernels_option
@quiet_option
@json_option("Print the profiles as one line of JSON.")
@verbose_option
def command(
    model: str,
    golden: Path,
    against: tuple[str, ...],
    threads: str,
    batches: str,
    chunks: str,
    margin: float,
    precision: str | None,
    write: bool,
    without_layers: bool,
    provider: Choice,
    cpu_kernels: KernelChoice,
    quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure how far MODEL, which is known to be right, is from GOLDEN, and derive the bounds that `check` uses.

    It is run with every number of threads, batch and chunk given: a right program's results differ a little between
    those. Each metric's largest noise, times the margin, is its bound. Models of one arithmetic make one profile
    together, named after it.
    """
    from dsv3export.compare.json_form import to_json
    from dsv3export.golden import Batching, Golden

    opened = Golden.read(golden)
    layers = bool(opened.document.values) and not without_layers
    batchings = [
        Batching(batch, chunk) for batch in _numbers("--batches", batches) for chunk in _numbers("--chunks", chunks)
    ]
    runs = _Runs(opened, _numbers("--threads", threads), batchings, precision, provider, cpu_kernels, layers)
    with progress_on_stderr(quiet) as progress:
        for path in (model, *against):
            runs.add(path, progress)
    profiles = runs.profiles(margin)
    if write:
        for profile in profiles:
            opened = opened.with_profile(profile)
        write_atomically(golden, opened.to_bytes())
    if as_json:
        print_json([to_json(profile) for profile in profiles])
        return
    for profile in profiles:
        _show(profile)
    if write:
        print_facts(f"Written into {golden}", [("profiles", ", ".join(profile.name for profile in profiles))])


class _Runs:
    """The noise of each arithmetic, by the name of its profile."""

    def __init__(
        self, golden: Golden, threads: Sequence[int], batchings: Sequence[Batching], precision: str | None,
        provider: Choice, cpu_kernels: KernelChoice, layers: bool,
    ) -> None:  # fmt: skip
        self._golden, self._threads, self._batchings = golden, threads, batchings
        self._precision, self._layers = precision, layers
        self._provider, self._kernels = provider, cpu_kernels
        self._noise: dict[str, Noise] = {}

    def add(self, path: str, progress: Progress) -> None:
        """Runs one model. Raises UserError."""
        from dsv3export.golden.calibrate import measure_noise
        from dsv3export.golden.profile import profile_name

        first = self._open(path, self._threads[0])
        name = profile_name(self._golden.document.identity, first.identity)
        # The executor's threads are torch's: it has one way to run.
        threads = list(self._threads) if first.identity.kind == "engine" else [None]
        noise = measure_noise(self._golden, partial(self._open, path), threads, self._batchings, progress)
        self._noise[name] = self._noise[name] + noise if name in self._noise else noise

    def profiles(self, margin: float) -> list[Profile]:
        """In the order of the models."""
        return [noise.profile(name, margin) for name, noise in self._noise.items()]

    def _open(self, path: str, threads: int | None) -> GoldenModel:
        from dsv3export.cli.golden.models import open_model

        recipe = checkpoint_recipe(self._precision, False, self._golden.document.identity.recipe)
        opened = open_model(
            path, recipe=recipe, threads=threads, provider=self._provider, cpu_kernels=self._kernels,
            layers=self._layers,
        )  # fmt: skip
        return opened if self._layers else opened.without_stages()


def _numbers(option: str, text: str) -> list[int]:
    """``1,2`` -> [1, 2]. Raises RequestError."""
    from dsv3export.errors import RequestError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part[:7]) >= 1 and len(part) < 7 for part in parts):
        raise RequestError(option, expected="numbers from 1 on, separated by commas", got=repr(text))
    return list(dict.fromkeys(int(part) for part in parts))


def _show(profile: Profile) -> None:
    print_facts(
        f"Profile {profile.name}",
        [
            ("runs", f"{len(profile.runs)}: {profile.runs[0]}; ..." if len(profile.runs) > 1 else profile.runs[0]),
            ("margin", f"{profile.margin:g} times the largest, of a divergence its square"),
        ],
    )
    rows = [
        (
            each.metric,
            f"{each.values:,}",
            f"{each.median:.2e}",
            f"{each.p99:.2e}",
            f"{each.largest:.2e}",
            f"{each.bound:.2e}",
        )
        for each in profile.bounds
    ]
    print_table(
        "Noise and bounds", ("metric", "seen", "median", "99 %", "largest", "bound"), rows,
        ("seen", "median", "99 %", "largest", "bound"),
    )  # fmt: skip
