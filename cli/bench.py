"""`dsv3export bench`: prefill and decode rates of an engine, alone or beside another one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.command import Command
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.launch import RankOptions, ranks_options, require_one_process, take_place
from dsv3export.cli.loading import load_engine
from dsv3export.cli.options import (
    PathName,
    cpu_kernels_option,
    invariant_option,
    json_option,
    provider_option,
    quiet_option,
    verbose_option,
)
from dsv3export.cli.outputs import check_plot
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import print_json, print_table
from dsv3export.errors import RequestError

if TYPE_CHECKING:
    from dsv3export.bench.measure import Measured
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice

EXAMPLES = (
    "dsv3export bench int8.engine",
    "dsv3export bench int8.engine --batch 1,8 --prompt-tokens 128,512 --speculate 1 --plot rates.png",
    "dsv3export bench int4.engine --compare int8.engine --min-ratio 1.1 --json",
    "dsv3export bench cut.engine --nproc 2 --compare int8.engine",
)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, separated by commas. A `type` of click's options. Raises BadParameter."""
    found = numbers_from_0(text)
    if 0 in found:
        raise click.BadParameter(f"expected numbers above 0, got {text!r}")
    return found


def numbers_from_0(text: str) -> tuple[int, ...]:
    """As `numbers`, and 0."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise click.BadParameter(f"expected numbers such as 1,8,32, got {text!r}")
    return tuple(int(part) for part in parts)


@click.command("bench", cls=Command, examples=EXAMPLES)
@click.argument("engine", type=PathName(path_type=Path))
@click.option("--batch", type=numbers, default="1", show_default=True, metavar="N,...", help="Sequences at once.")
@click.option("--prompt-tokens", type=numbers, default="128", show_default=True, metavar="N,...",
              help="Lengths of prompts.")  # fmt: skip
@click.option("--new-tokens", type=click.IntRange(2, 10**6), default=32, show_default=True, metavar="N",
              help="Tokens to generate for each.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N",
              help="Measured rounds of each case, after one to warm up.")  # fmt: skip
@click.option("--speculate", type=numbers_from_0, default="0", show_default=True, metavar="N,...",
              help="Tokens that the MTP layer drafts a step; OTHER drafts none.")  # fmt: skip
@click.option("--compare", type=PathName(path_type=Path), metavar="OTHER",
              help="Another engine, measured in turns with this one.")  # fmt: skip
@click.option("--min-ratio", type=click.FloatRange(0, min_open=True), metavar="R",
              help="With --compare: exit with 1 if a rate is below R times the other's.")  # fmt: skip
@click.option("--plot", type=PathName(path_type=Path), metavar="FILE", help="Draw the rates to a .png or .svg.")
@click.option("--threads", type=int, metavar="N", help="CPU threads [default: the physical cores].")
@provider_option
@cpu_kernels_option
@invariant_option
@ranks_options
@json_option("Print one line of JSON instead of tables.")
@quiet_option
@verbose_option
def command(
    engine: Path, batch: tuple[int, ...], prompt_tokens: tuple[int, ...], new_tokens: int, repeats: int,
    speculate: tuple[int, ...], compare: Path | None, min_ratio: float | None, plot: Path | None, threads: int | None,
    provider: Choice, cpu_kernels: KernelChoice, invariant: bool, ranks: RankOptions,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure how fast ENGINE is: prompt tokens and new tokens per second, of all sequences together.

    Each case is prompts of random tokens. Rates are medians of the repeats, with the slowest and the fastest. On a CPU
    the weights that a step reads, by its rate, are set against how fast this machine reads memory, measured in the same
    run. An engine for several ranks is run with --nproc: then it also says which share of its time each rank waited for
    others. OTHER is loaded by the first rank alone.
    """
    # Before numpy is loaded: the bandwidth is that of our threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from dsv3export.bench.measure import Case, measure

    if min_ratio is not None and compare is None:
        raise RequestError("--min-ratio", expected="--compare with it")
    form = _plot_format(plot)
    if compare is not None:
        require_one_process(compare, "--compare")
    take_place(engine, ranks, threads, cpu_kernels)
    cases = [
        Case(size, length, new_tokens, drafts) for size in batch for length in prompt_tokens for drafts in speculate
    ]
    paths = [engine, *([compare] if compare else [])]
    loaded = [
        load_engine(
            path,
            threads,
            provider,
            cpu_kernels=cpu_kernels,
            invariant=invariant,
            max_batch=max(batch),
            **ranks.timeouts,
        )
        for path in paths
    ]
    measured: list[list[Measured]] = [[] for _ in loaded]
    with progress_on_stderr(quiet or as_json) as progress:
        progress.start("measuring", len(cases) * len(loaded) * (repeats + 1), "rounds")
        for case in cases:
            measured[0].append(measure(loaded[0], case, repeats, progress.advance))
            if compare:
                measured[1].append(measure(loaded[1], replace(case, drafts=0), repeats, progress.advance))
        progress.finish()
    bandwidth = _bandwidth(threads) if loaded[0].session.cache_on_host else None
    names = _names(paths)
    rows = [
        [_row(name, one, each, bandwidth) for one in results]
        for name, results, each in zip(names, measured, loaded, strict=True)
    ]
    ratios = [_ratios(mine, theirs) for mine, theirs in zip(measured[0], measured[-1], strict=True)] if compare else []
    waiting = {each.rank: each.waiting_share for each in loaded[0].rank_figures()}
    if as_json:
        result = {"results": [row for each in rows for row in each], "read_bytes_per_second": bandwidth}
        shares = [{"rank": rank, "waiting_share": share} for rank, share in waiting.items()]
        print_json(result | ({"ratios": ratios} if compare else {}) | ({"ranks": shares} if shares else {}))
    else:
        _print(rows, ratios, bandwidth)
        for rank, share in waiting.items():
            click.echo(f"rank {rank} waited for others {share:.0%} of its time")
    if plot and form:
        # After the results are out: they took long, and a disk may be full by now.
        _draw(plot, form, dict(zip(names, measured, strict=True)))
    lowest = min((min(each["prefill"], each["decode"]) for each in ratios), default=float("inf"))
    if min_ratio is not None and lowest < min_ratio:
        click.echo(f"dsv3export: a rate is {lowest:.2f} times the other's, below {min_ratio:g}", err=True)
        raise click.exceptions.Exit(1)


def _plot_format(plot: Path | None) -> Any:
    """What to draw, before minutes are spent on it. Raises UserError where that could not be done."""
    if plot is None:
        return None
    form = plot.suffix.removeprefix(".")
    if form not in ("png", "svg"):
        raise RequestError("--plot", expected="a file that ends with .png or .svg", got=plot.name)
    check_plot(plot)
    return form


def _bandwidth(threads: int | None) -> float:
    from dsv3export.bench.bandwidth import read_bandwidth
    from dsv3export.runtime.threads import default_threads

    return read_bandwidth(threads or default_threads())


def _names(paths: Sequence[Path]) -> list[str]:
    """The engines' folders, in full where they are called the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [f"{place}: {path}" for place, path in enumerate(paths)]


def _row(name: str, one: Measured, engine: Engine, bandwidth: float | None) -> dict[str, Any]:
    from dsv3export.bench.traffic import bytes_read, engine_weights

    weights = engine_weights(engine.manifest, engine.config)
    read = bytes_read(weights, engine.config, one.case.batch) if weights else None  # several ranks have none in common
    share = None
    if bandwidth and read and one.acceptance is None:
        share = read * one.decode.median / one.case.batch / bandwidth
    return {
        "engine": name,
        "cpu_kernels": engine.cpu_kernels,
        **asdict(one.case),
        "prefill_tokens_per_second": asdict(one.prefill),
        "decode_tokens_per_second": asdict(one.decode),
        "weight_bytes_per_step": read and round(read),
        "share_of_read_bandwidth": share,
        "draft_acceptance": one.acceptance,
    }


def _ratios(mine: Measured, theirs: Measured) -> dict[str, Any]:
    return {
        **asdict(mine.case),
        "prefill": mine.prefill.median / theirs.prefill.median,
        "decode": mine.decode.median / theirs.decode.median,
    }


def _print(rows: Iterable[list[dict[str, Any]]], ratios: Sequence[Mapping[str, Any]], bandwidth: float | None) -> None:
    columns = (
        "batch",
        "prompt",
        "drafts",
        "prefill, tokens/s",
        "decode, tokens/s",
        "of the bandwidth",
        "drafts accepted",
    )
    for each in rows:
        cells = [
            (
                row["batch"], row["prompt_tokens"], _rate(row["prefill_tokens_per_second"]),
                _rate(row["decode_tokens_per_second"]), _share(row["share_of_read_bandwidth"]),
                _share(row["draft_acceptance"]),
            )
            for row in each
        ]  # fmt: skip
        kernels = each[0]["cpu_kernels"]
        print_table(f"{each[0]['engine']}{f', {kernels} kernels' if kernels else ''}", columns, cells, right=columns)
    if ratios:
        compared = [
            (one["batch"], one["prompt_tokens"], one["drafts"], f"{one['prefill']:.2f}", f"{one['decode']:.2f}")
            for one in ratios
        ]
        heads = ("batch", "prompt", "drafts", "prefill", "decode")
        print_table("first / second", heads, compared, right=heads)
    if bandwidth:
        click.echo(f"memory is read at {bandwidth / 1e9:.1f} GB/s")


def _rate(rate: Mapping[str, float]) -> str:
    return f"{rate['median']:.1f} ({rate['slowest']:.1f} to {rate['fastest']:.1f})"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _draw(plot: Path, form: Any, measured: Mapping[str, Sequence[Measured]]) -> None:
    from dsv3export.bench.plot import bench_plot

    write_atomically(plot, bench_plot(measured, form))
