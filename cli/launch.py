"""Commands over several ranks: `--nproc` starts them on this machine, and all but rank 0 do nothing but follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from dsv3export.cli.options import Invocation
from dsv3export.errors import RequestError

if TYPE_CHECKING:
    from dsv3export.runtime.kernel_choice import KernelChoice

Result = TypeVar("Result")
# How long a rank may take to end when the launcher tells it to.
SHUTDOWN_SECONDS = 10
# How long rank 0 looks whether that is because another one is gone.
LOOK_SECONDS = 2.0


class Timeouts(TypedDict, total=False):
    """Settings of `Engine.load`."""

    fault_timeout: float
    step_timeout: float


@dataclass(frozen=True)
class RankOptions:
    """How an engine for several ranks is run.

    Attributes:
        nproc: The ranks that are to be started here; None leaves that to torchrun.
        fault_timeout, step_timeout: See `Engine.load`.
    """

    nproc: int | None
    fault_timeout: float
    step_timeout: float

    @property
    def timeouts(self) -> Timeouts:
        return {"fault_timeout": self.fault_timeout, "step_timeout": self.step_timeout}


def ranks_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """The options of commands that run an engine; the command gets them as `ranks`, a `RankOptions`."""

    @wraps(command)
    def gathered(
        *arguments: Any, nproc: int | None, fault_timeout: float, step_timeout: float, **others: Any
    ) -> Result:
        return command(*arguments, ranks=RankOptions(nproc, fault_timeout, step_timeout), **others)

    nproc = click.option(
        "--nproc",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Start the N ranks of an engine built with --pp, --tp or --ep, on this machine. Over several machines: "
        "torchrun ... -m dsv3export.",
    )
    fault_timeout = click.option(
        "--fault-timeout",
        type=click.FloatRange(1, 3600),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Of several ranks: within which a rank that is gone ends the job.",
    )
    step_timeout = click.option(
        "--step-timeout",
        type=click.FloatRange(1, 86400),
        default=600.0,
        show_default=True,
        metavar="SECONDS",
        help="Of several ranks: a rank that computes for longer between two exchanges ends the job.",
    )
    return nproc(fault_timeout(step_timeout(gathered)))


def take_place(
    engine: Path,
    ranks: RankOptions,
    threads: int | None,
    cpu_kernels: KernelChoice,
    shutdown_seconds: int = SHUTDOWN_SECONDS,
) -> bool:
    """Returns in the process that is to do the command's work: the only one there is, or rank 0. Whether it is a rank.

    Another rank follows it, and ends this command with it. Without a launcher `--nproc` starts one, with this
    command's own arguments, and ends with its exit code.
    """
    from dsv3export.runtime.distributed.environment import in_job, place_in_job

    context = click.get_current_context()
    if in_job():
        place = place_in_job()
        if ranks.nproc not in (None, place.world_size):
            raise RequestError("--nproc", expected=f"{place.world_size}, as torchrun started", got=str(ranks.nproc))
        if place.rank:
            from dsv3export.runtime.distributed.join import take_part

            take_part(
                engine, threads, kernels=cpu_kernels,
                fault_timeout=ranks.fault_timeout, step_timeout=ranks.step_timeout,
            )  # fmt: skip
            context.exit(0)
        return True
    if ranks.nproc is not None:
        _require_ranks(engine, ranks.nproc)
        from dsv3export.runtime.distributed.torch_launch import launch

        context.exit(launch(context.ensure_object(Invocation).arguments, ranks.nproc, shutdown_seconds))
    return False


def require_one_process(path: str | Path, why: str) -> None:
    """Raises RequestError for an engine of several ranks, which this process cannot load beside another one."""
    from dsv3export.cli.subject import find_subject

    manifest = find_subject(str(path)).manifest
    if manifest is not None and manifest.parallel is not None:
        got = f"one for several ranks, {manifest.parallel.layout.describe()}"
        raise RequestError(f"{why} {path}", expected="an engine for a single process", got=got)


def _require_ranks(engine: Path, nproc: int) -> None:
    """Refuses at once what every rank would refuse later. Raises EngineError and RequestError."""
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.runtime.distributed.load import parallel_of

    layout = parallel_of(EngineFiles.open(engine)).layout
    if layout.world != nproc:
        raise RequestError("--nproc", expected=f"{layout.world}, for {layout.describe()}", got=str(nproc))
