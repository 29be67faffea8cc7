"""`dsv3export serve`: an engine behind OpenAI's HTTP interface. Imports neither torch nor onnx."""

from __future__ import annotations

import asyncio
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.byte_size import byte_size
from dsv3export.cli.command import Command
from dsv3export.cli.launch import LOOK_SECONDS, SHUTDOWN_SECONDS, RankOptions, ranks_options, take_place
from dsv3export.cli.loading import load_engine
from dsv3export.cli.options import (
    PathName,
    cpu_kernels_option,
    invariant_option,
    prefix_cache_option,
    provider_option,
    quiet_option,
    speculate_option,
    verbose_option,
)
from dsv3export.cli.tables import bytes_text

if TYPE_CHECKING:
    from dsv3export.runtime.async_engine import AsyncEngine
    from dsv3export.runtime.distributed.faults import JobFault
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice

EXAMPLES = (
    "dsv3export serve tiny.engine",
    "dsv3export serve tiny.engine --port 9000 --slots 16 --context 4096 --prefix-cache 1GiB",
    "dsv3export serve tiny.engine --host 0.0.0.0 --api-key secret",
    "dsv3export serve tp2.engine --nproc 2",
)
DEFAULT_CONTEXT = 8192


@click.command("serve", cls=Command, examples=EXAMPLES)
@click.argument("engine", type=PathName(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--slots", type=click.IntRange(1, 4096), default=8, show_default=True, help="Requests that run at once.")
@click.option("--max-waiting", type=click.IntRange(0), default=256, show_default=True,
              help="Requests that may wait; more get 429.")  # fmt: skip
@click.option("--context", type=click.IntRange(1), metavar="N",
              help=f"Tokens of a request, old and new [default: the model's, {DEFAULT_CONTEXT} at most].")  # fmt: skip
@prefix_cache_option
@click.option("--api-key", envvar="DSV3EXPORT_API_KEY", metavar="KEY",
              help="What clients must send as a bearer token [default: $DSV3EXPORT_API_KEY, or none].")  # fmt: skip
@click.option("--model-name", metavar="NAME", help="The model's name in the API [default: the engine's folder].")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, metavar="SECONDS",
              help="For one request.")  # fmt: skip
@click.option("--drain", type=click.IntRange(0), default=60, show_default=True, metavar="SECONDS",
              help="On SIGTERM, how long what runs may take to end.")  # fmt: skip
@click.option("--max-body", type=byte_size, default="8MiB", show_default=True, metavar="SIZE",
              help="Of one request.")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="CPU threads [default: the physical cores].")
@provider_option
@cpu_kernels_option
@invariant_option
@speculate_option
@ranks_options
@quiet_option
@verbose_option
def command(
    engine: Path, host: str, port: int, slots: int, max_waiting: int, context: int | None, prefix_cache: int | None,
    api_key: str | None, model_name: str | None, timeout: float, drain: int, max_body: int, threads: int | None,
    provider: Choice, cpu_kernels: KernelChoice, invariant: bool, speculate: int, ranks: RankOptions,
    quiet: bool,
) -> None:  # fmt: skip
    """Serve ENGINE over HTTP, as OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models.

    Requests of all clients run in one batch. / is a page to chat with the model, /health and /metrics (Prometheus) are
    for those who watch. Each request is a line of JSON on stderr. SIGTERM finishes what runs.
    """
    take_place(engine, ranks, threads, cpu_kernels, drain + SHUTDOWN_SECONDS)
    from dsv3export.runtime.async_engine import AsyncEngine
    from dsv3export.serve.app import create_app
    from dsv3export.serve.server import Server, address, listen
    from dsv3export.serve.server_state import ServerSettings

    with listen(host, port) as listening:  # before the engine is loaded, which takes long to be in vain
        loaded = load_engine(
            engine,
            threads,
            provider,
            quiet,
            cpu_kernels=cpu_kernels,
            invariant=invariant,
            max_batch=slots,
            capacity=context or DEFAULT_CONTEXT,
            prefix_cache=prefix_cache,
            speculate=speculate,
            **ranks.timeouts,
        )
        running = AsyncEngine(loaded, max_waiting)
        settings = ServerSettings(model_name or engine.resolve().name, api_key, timeout, max_body)
        app = create_app(running, settings)
        _log_to_stderr(quiet)
        watch = loaded.watch
        if watch:
            watch.listen(lambda fault: _give_up(running, fault))
        room = f"{slots} slots of {loaded.limits.context} tokens ({bytes_text(running.batcher.cache_bytes)})"
        click.echo(f"dsv3export: {settings.model} on {address(listening)}, {room}", err=True)

        async def serve() -> None:
            try:
                await Server(app, drain, partial(watch.look, LOOK_SECONDS) if watch else None).serve([listening])
            finally:
                await running.close(timeout=0)

        asyncio.run(serve())


def _give_up(running: AsyncEngine, fault: JobFault) -> None:
    """A rank is gone: all requests get 503 from now on, until the watch ends this process."""
    running.fail(fault)
    click.echo(f"dsv3export: error: {fault}", err=True)


def _log_to_stderr(quiet: bool) -> None:
    """Requests as lines of JSON, unless quiet; what uvicorn warns of, always."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name, level in (("dsv3export", logging.WARNING if quiet else logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
