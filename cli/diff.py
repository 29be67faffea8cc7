"""`dsv3export diff`: two models layer by layer, and where the first of them that is wrong begins to be."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.capabilities import PRECISIONS
from dsv3export.cli.command import Command
from dsv3export.cli.executor_kernels import executor_kernels_option, rounds_activations, triton_kernels
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.options import PathName, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.report import report_options, write_reports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.checkpoint import Checkpoint
    from dsv3export.cli.subject import Subject
    from dsv3export.compare.causes import ErrorSplit
    from dsv3export.compare.layers import LayerDiff
    from dsv3export.compare.stages import StagedModel
    from dsv3export.graphs.triton_kernels import TritonKernels
    from dsv3export.progress import Progress
    from dsv3export.recipe import Recipe
    from dsv3export.runtime.tokenizer import Tokenizer

EXAMPLES = (
    "dsv3export diff examples/tiny-dsv3 tiny.engine --prompts prompts.txt",
    "dsv3export diff examples/tiny-dsv3 int4.engine --prompts prompts.txt --precision fp32 --tolerance 0.5",
    "dsv3export diff examples/tiny-dsv3 int8.engine --prompts prompts.txt --causes",
    "dsv3export diff old.engine new.engine --prompts prompts.txt --json diff.json --html diff.html",
    "dsv3export diff model.golden int4.engine --json diff.json",
    "dsv3export diff examples/tiny-dsv3 examples/tiny-dsv3 --prompts prompts.txt --executor-kernels triton",
)
# The largest error of a token's row that two right programs of the same arithmetic were seen to make is 2e-6; where
# activations or the cache are rounded, a number at the edge between two steps may go either way: 6e-3.
SAME_ARITHMETIC = 1e-4
ROUNDED = 2e-2


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

    A may also be a golden, a file of `golden record`: B, which may be one too, is then held against its digests, router
    choices and log-probabilities, by the bounds of `golden check`. A golden has no weights, so errors are only those
    that add up.
    """
    from dsv3export.cli.diff_golden import diff_with_golden, is_golden, refuse_options, report_golden_diff
    from dsv3export.cli.diff_summary import show
    from dsv3export.cli.subject import find_subject
    from dsv3export.compare import diff_layers
    from dsv3export.compare.diff_file import diff_to_bytes
    from dsv3export.errors import RequestError

    if is_golden(expected, got):
        refuse_options(
            {
                "--tolerance": tolerance,
                "--plot": plot_file,
                "--causes": causes or None,
                "--executor-kernels": executor_kernels,
            }
        )
        held = diff_with_golden(
            expected, got, prompts=prompts, profile=profile, precision=precision, calibration=calibration,
            threads=threads, quiet=quiet,
        )  # fmt: skip
        report_golden_diff(held, json_file, html_file, show_all)
        raise click.exceptions.Exit(0 if held.first_fault is None else 1)
    if prompts is None:
        raise RequestError("--prompts", expected="a file of prompts, as A is no golden", got="none")
    if profile is not None:
        raise RequestError("--profile", expected="a golden as A", got="none", fix="Bounds of models: --tolerance.")
    sides = find_subject(expected), find_subject(got)
    if causes and executor_kernels is not None:
        raise RequestError("--causes", expected="the executor's own arithmetic", got="--executor-kernels")
    checkpoints = [place for place, side in enumerate(sides) if side.checkpoint is not None]
    kernels = triton_kernels(executor_kernels, expected, got)
    ids = read_prompts(prompts, sides)
    if causes:
        check_causes(sides)
    recipe = checkpoint_recipe(sides, precision, calibration is not None)
    models = [
        staged(side, ids, recipe, calibration, threads, kernels if [place] == checkpoints[-1:] else None)
        for place, side in enumerate(sides)
    ]
    bound = default_tolerance(sides, recipe, rounds_activations(executor_kernels)) if tolerance is None else tolerance
    with progress_on_stderr(quiet) as progress:
        diff = diff_layers(models[0], models[1], len(ids), bound, progress)
        if causes:
            diff = replace(diff, causes=error_split(sides, ids, calibration, threads, progress))
    diff = name_tokens(diff, ids, sides)
    if json_file is not None:
        write_atomically(json_file, diff_to_bytes(diff))
    write_reports(diff, html_file, plot_file)
    show(diff, show_all)
    if diff.first_fault is not None:
        raise click.exceptions.Exit(1)


def read_prompts(path: Path, sides: Sequence[Subject]) -> list[list[int]]:
    """Token ids of each line. Raises UserError."""
    from dsv3export.runtime.prompt_file import read_prompt_file
    from dsv3export.runtime.requests import Limits

    config = sides[0].config
    limits = Limits(config.vocab_size, config.max_position_embeddings, "the model's max_position_embeddings")
    tokenizer = cache(lambda: _tokenizer(sides))
    found = read_prompt_file(path, limits, lambda text: tokenizer().encode(text))
    return [prompt.ids for prompt in found]


def _tokenizer(sides: Sequence[Subject]) -> Tokenizer:
    from dsv3export.errors import TokenizerError

    found = find_tokenizer(sides)
    if found is None:
        raise TokenizerError("prompts", expected="a tokenizer in A or B", got="none", fix="Give token ids instead.")
    return found


def find_tokenizer(sides: Sequence[Subject]) -> Tokenizer | None:
    """That of the first side that has one. Raises TokenizerError."""
    from dsv3export.engine.tokenizer_files import TOKENIZER_FOLDER
    from dsv3export.runtime.tokenizer import Tokenizer

    for side in sides:
        folder = Path(side.path) / TOKENIZER_FOLDER if side.kind == "engine" else Path(side.path)
        if (folder / "tokenizer.json").exists():
            return Tokenizer.from_directory(folder)
    return None


def name_tokens(diff: LayerDiff, prompts: Sequence[Sequence[int]], sides: Sequence[Subject]) -> LayerDiff:
    """The same with the texts of the worst tokens, where a side has a tokenizer."""
    from dsv3export.compare.distributions import with_texts

    tokenizer = find_tokenizer(sides)
    if tokenizer is None:
        return diff
    return replace(
        diff, logits=with_texts(diff.logits, prompts, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    )


def checkpoint_recipe(sides: Sequence[Subject], precision: str | None, calibrated: bool) -> Recipe:
    """What a checkpoint among the two is computed in: as the engine beside it, unless told otherwise."""
    from dsv3export.recipe import Recipe

    if precision is not None:
        return Recipe.for_precision(precision, calibrated)
    manifests = [side.manifest for side in sides if side.manifest is not None]
    return manifests[0].recipe if len(manifests) == 1 else Recipe.for_precision("fp32")


def staged(
    side: Subject,
    ids: list[list[int]],
    recipe: Recipe,
    calibration: Path | None,
    threads: int | None,
    kernels: TritonKernels | None = None,
) -> StagedModel:
    """A side, ready to run layer by layer. Raises UserError."""
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.errors import RequestError

    # torch comes with this import.
    from dsv3export.graphs.capture import EngineStages, ExecutorStages

    if side.manifest is not None:
        return EngineStages(EngineFiles.open(side.path), ids, threads)
    if side.checkpoint is None:
        raise RequestError(side.path, expected="an engine or a checkpoint", got=f"a {side.kind}, which has no weights")
    return ExecutorStages(side.checkpoint, ids, recipe, _calibration_ids(side.checkpoint, calibration), kernels)


def error_split(
    sides: Sequence[Subject], ids: list[list[int]], calibration: Path | None, threads: int | None, progress: Progress
) -> ErrorSplit:
    """The error of an engine by cause. Raises UserError."""
    from dsv3export.compare import split_causes
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.graphs.capture import cause_chain

    checkpoint, engine = check_causes(sides)
    fitted = _calibration_ids(checkpoint, calibration)
    exact, chain = cause_chain(checkpoint, EngineFiles.open(engine.path), ids, fitted, threads)
    return split_causes(exact, chain, len(ids), progress)


def check_causes(sides: Sequence[Subject]) -> tuple[Checkpoint, Subject]:
    """Raises RequestError unless A is a checkpoint and B an engine."""
    from dsv3export.errors import RequestError

    checkpoint, engine = sides[0].checkpoint, sides[1]
    if checkpoint is None or engine.manifest is None:
        raise RequestError(
            "--causes", expected="a checkpoint as A and an engine as B", got=f"{sides[0].kind} and {engine.kind}"
        )
    return checkpoint, engine


def _calibration_ids(checkpoint: Checkpoint, calibration: Path | None) -> Any:
    from dsv3export.graphs.calibration_text import calibration_sequences

    return None if calibration is None else calibration_sequences(calibration, checkpoint)


def default_tolerance(sides: Sequence[Subject], recipe: Recipe, rounded: bool = False) -> float:
    """By the arithmetic of both sides; infinite where their recipes differ, as then no error is a fault by itself."""
    recipes = [side.manifest.recipe if side.manifest is not None else recipe for side in sides]
    if recipes[0].to_json() != recipes[1].to_json():
        return math.inf
    activations = {scheme.activations for scheme in recipes[0].components.values()}
    exact = activations == {"none"} and recipes[0].cache == "fp32" and not rounded
    return SAME_ARITHMETIC if exact else ROUNDED
