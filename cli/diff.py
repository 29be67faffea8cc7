"""`dsv3export diff`: two models layer by layer, and where the first of them that is wrong begins to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.capabilities import PRECISIONS
from dsv3export.cli.command import Command
from dsv3export.cli.executor_kernels import executor_kernels_option, rounds_activations, triton_kernels
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.options import PathName, cpu_kernels_option, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.report import report_options, write_reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.cli.diff_models import Running
    from dsv3export.cli.subject import Subject
    from dsv3export.compare.layers import LayerDiff
    from dsv3export.runtime.kernel_choice import KernelChoice

EXAMPLES = (
    "dsv3export diff examples/tiny-dsv3 tiny.engine --prompts prompts.txt",
    "dsv3export diff examples/tiny-dsv3 int4.engine --prompts prompts.txt --precision fp32 --tolerance 0.5",
    "dsv3export diff examples/tiny-dsv3 int8.engine --prompts prompts.txt --causes",
    "dsv3export diff old.engine new.engine --prompts prompts.txt --json diff.json --html diff.html",
    "dsv3export diff examples/tiny-dsv3 rtx.engine --prompts prompts.txt --replay",
    "dsv3export diff model.golden int4.engine --json diff.json",
    "dsv3export diff examples/tiny-dsv3 examples/tiny-dsv3 --prompts prompts.txt --executor-kernels triton",
)


@click.command("diff", cls=Command, examples=EXAMPLES)
@click.argument("expected", metavar="A", type=PathName())
@click.argument("got", metavar="B", type=PathName())
@click.option(
    "--prompts",
    type=PathName(path_type=Path),
    metavar="FILE",
    help="UTF-8; each line is a prompt: text, or token ids as a JSON array. Not needed where A is a golden.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="What a checkpoint is computed in; default: as the engine that it is compared with, or fp32.",
)
@click.option("--calibration", type=PathName(path_type=Path), metavar="FILE", help="The text an engine was built with.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest relative error of a token's row that one layer may add.  [default: by the arithmetic]",
)
@click.option("--profile", metavar="NAME", help="Bounds where A is a golden.  [default: as of `golden check`]")
@click.option("--json", "json_file", type=PathName(path_type=Path), metavar="FILE", help="Write everything to FILE.")
@report_options
@click.option("--causes", is_flag=True, help="Split an engine's error: weights, activations, cache, backend.")
@click.option("--all", "show_all", is_flag=True, help="Print every value, not only each layer's result.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of an engine.")
@cpu_kernels_option
@click.option("--replay", is_flag=True, help="Compute TensorRT-RTX engines on the CPU, as TensorRT was told to.")
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    metavar="N",
    help="Prompt tokens that a TensorRT engine takes at once; few go to its decode engines.  [default: all it takes]",
)
@executor_kernels_option
@quiet_option
@verbose_option
def command(
    expected: str,
    got: str,
    prompts: Path | None,
    precision: str | None,
    calibration: Path | None,
    tolerance: float | None,
    profile: str | None,
    json_file: Path | None,
    html_file: Path | None,
    plot_file: Path | None,
    causes: bool,
    show_all: bool,
    threads: int | None,
    cpu_kernels: KernelChoice,
    replay: bool,
    chunk: int | None,
    executor_kernels: str | None,
    quiet: bool,
) -> None:
    """Compare A (right) with B (in question) layer by layer; either is an engine or a checkpoint.

    A checkpoint is computed by the executor. Every layer of B runs twice: on its own input, which shows how errors add
    up, and on A's, which shows what that layer alone does wrong. One layer's weights are in memory at a time. The first
    value whose own error is beyond the tolerance is named, with the place and both numbers; the exit code is then 1.

    With --executor-kernels the executor computes by the Triton kernels; of two checkpoints only B, so that
    `diff CKPT CKPT` holds the kernels against the definitions of their ops.

    With --causes, A being the checkpoint that engine B was built from, it runs several times more: in float32, with the
    engine's weights, with activations rounded, with the cache in its format. What each of these adds is shown.

    A TensorRT engine is computed on its GPU, where a copy of each layer kind is built that shows its values; or, with
    --replay, on the CPU of any machine, from what TensorRT is told when it builds the engine.

    A may also be a golden, a file of `golden record`: B, which may be one too, is then held against its digests, router
    choices and log-probabilities, by the bounds of `golden check`. A golden has no weights, so errors are only those
    that add up.
    """
    from dsv3export.cli.diff_golden import diff_with_golden, is_golden, refuse_options, report_golden_diff
    from dsv3export.cli.diff_models import Running, checkpoint_recipe, default_tolerance, read_prompts
    from dsv3export.cli.diff_summary import show
    from dsv3export.cli.outputs import check_outputs, check_plot
    from dsv3export.cli.subject import find_subject
    from dsv3export.errors import RequestError

    check_outputs(json_file, html_file)
    check_plot(plot_file)
    if is_golden(expected, got):
        of_models = {"--tolerance": tolerance, "--plot": plot_file, "--causes": causes or None}
        refuse_options(
            of_models | {"--replay": replay or None, "--chunk": chunk, "--executor-kernels": executor_kernels}
        )
        held = diff_with_golden(
            expected, got, prompts=prompts, profile=profile, precision=precision, calibration=calibration,
            threads=threads, cpu_kernels=cpu_kernels, quiet=quiet,
        )  # fmt: skip
        report_golden_diff(held, json_file, html_file, show_all)
        raise click.exceptions.Exit(0 if held.first_fault is None else 1)
    if causes and executor_kernels:
        raise RequestError("--causes", expected="the executor's own arithmetic", got="--executor-kernels")
    sides = find_subject(expected), find_subject(got)
    kernels = triton_kernels(executor_kernels, expected, got)
    ids = read_prompts(require_prompts(prompts, profile), sides)
    recipe = checkpoint_recipe(sides, precision, calibration is not None)
    bound = default_tolerance(sides, recipe, rounds_activations(executor_kernels)) if tolerance is None else tolerance
    running = Running(recipe, calibration, threads, replay, chunk, kernels, cpu_kernels)
    diff = diff_models(sides, ids, running, bound, causes, quiet)
    write_diff(diff, json_file, html_file, plot_file)
    show(diff, show_all)
    if diff.first_fault is not None:
        raise click.exceptions.Exit(1)


def require_prompts(prompts: Path | None, profile: str | None) -> Path:
    """Raises RequestError for options that only fit a golden as A."""
    from dsv3export.errors import RequestError

    if prompts is None:
        raise RequestError("--prompts", expected="a file of prompts, as A is no golden", got="none")
    if profile is not None:
        raise RequestError("--profile", expected="a golden as A", got="none", fix="Bounds of models: --tolerance.")
    return prompts


def diff_models(
    sides: Sequence[Subject], ids: list[list[int]], running: Running, tolerance: float, causes: bool, quiet: bool
) -> LayerDiff:
    """The whole comparison of two models, the worst tokens with their texts. Raises UserError."""
    from dsv3export.cli.diff_models import check_causes, error_split, name_tokens, refuse_for_others, staged_pair
    from dsv3export.compare import diff_layers

    refuse_for_others(sides, running)
    if causes:
        check_causes(sides)
    models = staged_pair(sides, ids, running)
    with progress_on_stderr(quiet) as progress:
        diff = diff_layers(models[0], models[1], len(ids), tolerance, progress)
        if causes:
            diff = replace(diff, causes=error_split(sides, ids, running, progress))
    return name_tokens(diff, ids, sides)


def write_diff(diff: LayerDiff, json_file: Path | None, html_file: Path | None, plot_file: Path | None) -> None:
    """The files that were asked for. Raises UserError."""
    from dsv3export.compare.diff_file import diff_to_bytes

    if json_file is not None:
        write_atomically(json_file, diff_to_bytes(diff))
    write_reports(diff, html_file, plot_file)
