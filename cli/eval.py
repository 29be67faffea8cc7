"""`dsv3export eval`: the perplexity of a text, and how far an engine's predictions are from another's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.command import Command
from dsv3export.cli.executor_kernels import executor_kernels_option, triton_kernels
from dsv3export.cli.launch import RankOptions, Timeouts, ranks_options, require_one_process, take_place
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
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import print_facts, print_json

if TYPE_CHECKING:
    from dsv3export.evaluate import Comparison, Evaluation, LanguageModel
    from dsv3export.graphs.triton_kernels import TritonKernels
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice
    from dsv3export.runtime.tokenizer import Tokenizer

EXAMPLES = (
    "dsv3export eval tiny.engine --text tests/data/goldens/heldout.txt",
    "dsv3export eval tiny.engine --text tests/data/goldens/heldout.txt --against examples/tiny-dsv3",
    "dsv3export eval int4.engine --text novel.txt --chunk-tokens 1023 --against fp32.engine --json",
    "dsv3export eval cut.engine --nproc 2 --text novel.txt --against tiny.engine",
)


@click.command("eval", cls=Command, examples=EXAMPLES)
@click.argument("engine", type=PathName())
@click.option("--text", required=True, type=PathName(path_type=Path), metavar="FILE", help="The text, in UTF-8.")
@click.option(
    "--chunk-tokens",
    type=int,
    default=255,
    show_default=True,
    metavar="N",
    help="Predict each token from at most N tokens before it (a BOS and those of its chunk).",
)
@click.option(
    "--against",
    type=PathName(),
    metavar="OTHER",
    help="Compare the predictions with those of another engine, or of a checkpoint in float32.",
)
@click.option("--threads", type=int, metavar="N", help="CPU threads of an engine [default: the physical cores].")
@provider_option
@cpu_kernels_option
@invariant_option
@executor_kernels_option
@ranks_options
@quiet_option
@json_option("Print one line of JSON.")
@verbose_option
def command(
    engine: str,
    text: Path,
    chunk_tokens: int,
    against: str | None,
    threads: int | None,
    provider: Choice,
    cpu_kernels: KernelChoice,
    invariant: bool,
    executor_kernels: str | None,
    ranks: RankOptions,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say how well ENGINE predicts a text: its perplexity.

    The text is cut into chunks of N tokens, and each is run alone behind a BOS. With --against also the divergence
    KL(OTHER || ENGINE) of the next-token distributions, in nats, and how often both find the same token the likeliest;
    behind +- stands the standard error, of a perplexity ratio that of the paired differences between the two.
    ENGINE may be a checkpoint too: then the executor of its graph computes it in float32, which needs the packages of
    `build`; with --executor-kernels by the Triton kernels. --provider and --cpu-kernels are for ENGINE; OTHER runs
    on what it was built for: `eval ENGINE --cpu-kernels onnxruntime --against ENGINE` sets both kinds of kernels side
    by side. An engine for several ranks is run with --nproc; OTHER is loaded by the first rank alone.
    """
    from dsv3export.evaluate import compare, evaluate
    from dsv3export.runtime.text_file import read_text

    content = read_text(text)
    if against is not None:
        require_one_process(against, "--against")
    take_place(Path(engine), ranks, threads, cpu_kernels)
    kernels = triton_kernels(executor_kernels, engine)
    opened = open_model(engine, threads, provider, cpu_kernels, kernels, invariant, ranks.timeouts)
    ids = tokens_of(opened, content)
    facts: dict[str, Any] = {"engine": engine, "text": str(text), "chunk_tokens": chunk_tokens}
    if against is None:
        with progress_on_stderr(quiet) as progress:
            facts |= score(evaluate(opened.model, ids, chunk_tokens, progress), content)
    else:
        other = open_model(against, threads)
        require_same_layers(other, opened)
        require_same_tokens(other, opened, ids, content)
        with progress_on_stderr(quiet) as progress:
            comparison = compare(opened.model, other.model, ids, chunk_tokens, progress)
        facts |= score(comparison.model, content)
        facts["against"] = {"engine": against} | score(comparison.against, content) | distance(comparison)
    if as_json:
        print_json(facts)
    else:
        show(facts)


@dataclass(frozen=True)
class OpenModel:
    """An engine, or a checkpoint's executor, with the tokenizer that came with it."""

    path: str
    model: LanguageModel
    tokenizer: Tokenizer | None
    layers: tuple[int, ...] | None = None  # of an engine of a part of the model


def open_model(
    path: str,
    threads: int | None,
    provider: Choice = "auto",
    cpu_kernels: KernelChoice = "auto",
    kernels: TritonKernels | None = None,
    invariant: bool = False,
    timeouts: Timeouts | None = None,
) -> OpenModel:
    """Loads an engine, or makes the executor of a checkpoint. Raises UserError."""
    from dsv3export.cli.subject import find_subject
    from dsv3export.errors import RequestError

    subject = find_subject(path)
    if subject.manifest is not None:
        loaded = load_engine(path, threads, provider, cpu_kernels=cpu_kernels, invariant=invariant, **(timeouts or {}))
        return OpenModel(path, loaded, loaded.tokenizer, subject.manifest.layers)
    if subject.checkpoint is None:
        raise RequestError(path, expected="an engine or a checkpoint", got=f"a {subject.kind}, which has no weights")
    # torch comes with this import.
    from dsv3export.graphs import Executor
    from dsv3export.runtime.tokenizer import Tokenizer

    folder = Path(path)
    tokenizer = Tokenizer.from_directory(folder) if (folder / "tokenizer.json").exists() else None
    return OpenModel(path, Executor(subject.checkpoint, kernels=kernels), tokenizer)


def tokens_of(opened: OpenModel, text: str) -> list[int]:
    """The text's token ids, without special tokens. Raises TokenizerError where the engine has no tokenizer."""
    from dsv3export.errors import TokenizerError

    if opened.tokenizer is None:
        raise TokenizerError(
            opened.path,
            expected="a tokenizer",
            got="none",
            fix="Put tokenizer.json into the checkpoint, and rebuild an engine.",
        )
    return opened.tokenizer.encode(text, add_special_tokens=False)


def require_same_layers(other: OpenModel, opened: OpenModel) -> None:
    """Raises RequestError unless both are whole models, or the same part of one."""
    from dsv3export.errors import RequestError

    parts = ["all" if one.layers is None else " ".join(map(str, one.layers)) for one in (opened, other)]
    if parts[0] != parts[1]:
        raise RequestError(f"{opened.path} and {other.path}: layers", expected=parts[0], got=parts[1])


def require_same_tokens(other: OpenModel, opened: OpenModel, ids: list[int], text: str) -> None:
    """Raises RequestError if `other` has a tokenizer that reads the text differently."""
    from dsv3export.errors import RequestError

    if other.tokenizer is None:
        return
    others = other.tokenizer.encode(text, add_special_tokens=False)
    if others != ids:
        pairs = zip(ids, others, strict=False)
        first = next((place for place, (own, its) in enumerate(pairs) if own != its), min(len(ids), len(others)))
        raise RequestError(
            f"{opened.path} and {other.path}: vocabularies",
            expected="one tokenization of the text",
            got=f"token {first} differs",
        )


def score(evaluation: Evaluation, text: str) -> dict[str, Any]:
    """The figures of one model, JSON-able; `nll` is a sum in nats. A perplexity beyond float64 is null."""
    size = len(text.encode("utf-8"))
    return {
        "tokens": evaluation.tokens,
        "nll": evaluation.nll,
        "nll_mean": evaluation.nll / evaluation.tokens,
        "perplexity": _finite(evaluation.perplexity),
        "bits_per_byte": evaluation.nll / math.log(2) / size,
    }


def distance(comparison: Comparison) -> dict[str, Any]:
    """The figures of two models, JSON-able; divergences in nats, errors as standard errors (null for one token)."""
    return {
        "perplexity_ratio": _finite(comparison.perplexity_ratio),
        "perplexity_ratio_error": _finite(comparison.perplexity_ratio_error),
        "kl_mean": comparison.kl_mean,
        "kl_error": _finite(comparison.kl_error),
        "kl_p99": comparison.kl_p99,
        "kl_max": comparison.kl_max,
        "top1_agreement": comparison.top1_agreement,
        "top1_error": _finite(comparison.top1_error),
    }


def show(facts: dict[str, Any]) -> None:
    """Prints the figures for people."""
    rows = [
        ("text", f"{facts['text']}: {facts['tokens']:,} tokens in chunks of {facts['chunk_tokens']:,}"),
        *_score_rows(facts),
    ]
    print_facts(facts["engine"], rows)
    if "against" not in facts:
        return
    other = facts["against"]
    ratio_error = other["perplexity_ratio_error"]
    divergence = _with_error(f"{other['kl_mean']:.3e}", other["kl_error"], ".1e")
    tail = f"99 % below {other['kl_p99']:.2e}, max {other['kl_max']:.2e}"
    print_facts(
        f"against {other['engine']}",
        [
            *_score_rows(other),
            ("perplexity ratio", _with_error(_figure(other["perplexity_ratio"], ".6f"), ratio_error, ".6f")),
            ("KL divergence", f"{divergence} nats per token, {tail}"),
            ("top-1 agreement", _with_error(f"{other['top1_agreement']:.2%}", other["top1_error"], ".2%")),
        ],
    )


def _score_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    nll = f"{facts['nll']:,.3f} nats, {facts['nll_mean']:.5f} per token, {facts['bits_per_byte']:.5f} bits per byte"
    return [("perplexity", _figure(facts["perplexity"], ".4f")), ("NLL", nll)]


def _figure(value: float | None, style: str) -> str:
    return "beyond float64" if value is None else format(value, style)


def _with_error(figure: str, error: float | None, style: str) -> str:
    return figure if error is None else f"{figure} +- {error:{style}}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
