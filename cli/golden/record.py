"""`dsv3export golden record`: what a model computes for some prompts, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.command import Command
from dsv3export.cli.executor_kernels import executor_kernels_option, triton_kernels
from dsv3export.cli.golden.options import ModelOptions, model_options
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.options import PathName, quiet_option, verbose_option
from dsv3export.cli.outputs import check_outputs
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import bytes_text, counted, print_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.golden import Golden, GoldenModel, Settings
    from dsv3export.runtime.prompt_file import FilePrompt

EXAMPLES = (
    "dsv3export golden record checkpoint --prompts prompts.txt -o model.golden",
    "dsv3export golden record fp8.engine --prompts prompts.txt --text novel.txt -o fp8.golden",
    "dsv3export golden record checkpoint --prompts more.txt -o model.golden --update",
    "dsv3export golden record tiny.engine --prompts prompts.txt --digest none -o outputs.golden",
)


@click.command("record", cls=Command, examples=EXAMPLES)
@click.argument("model", type=PathName())
@click.option(
    "--prompts",
    type=PathName(path_type=Path),
    metavar="FILE",
    help='UTF-8; each line is a prompt: text, [token ids], {"text": "..."} or {"ids": [...]}.',
)
@click.option("-o", "--output", type=PathName(path_type=Path), required=True, metavar="GOLDEN", help="File to write.")
@click.option("--force", is_flag=True, help="Replace a golden that is there.")
@click.option(
    "--update",
    is_flag=True,
    help="Record GOLDEN's prompts again, with its settings and profiles, and then those of --prompts that it lacks.",
)
@click.option("--logits", metavar="top-K|full", help="Log-probabilities kept of each position.  [default: top-8]")
@click.option("--new-tokens", type=click.IntRange(min=1), metavar="N", help="Greedy continuation.  [default: 16]")
@click.option(
    "--digest",
    type=click.Choice(("none", "norm", "projections", "full")),
    help="What is kept of the values in the model; all but none need the packages of build.  [default: projections]",
)
@click.option("--detail", type=click.Choice(("layers", "all")), help="Of which values.  [default: layers]")
@click.option("--text", type=PathName(path_type=Path), metavar="FILE", help="Take the perplexity of a text, too.")
@model_options
@executor_kernels_option
@quiet_option
@verbose_option
def command(
    model: str,
    prompts: Path | None,
    output: Path,
    force: bool,
    update: bool,
    logits: str | None,
    new_tokens: int | None,
    digest: str | None,
    detail: str | None,
    text: Path | None,
    running: ModelOptions,
    executor_kernels: str | None,
    quiet: bool,
) -> None:
    """Record what MODEL, an engine or a checkpoint, computes for some prompts.

    A checkpoint is computed by the executor, in float32 unless --precision says otherwise; with --executor-kernels by
    the Triton kernels. The file has the prompts and their tokens, log-probabilities, the greedy continuation, routers'
    choices and a digest of each layer. It appears whole or not at all; the same model, programs and options give
    the same bytes.
    """
    from dsv3export.errors import RequestError
    from dsv3export.golden import record_golden

    old = _old(output, force, update)
    if prompts is None and old is None:
        raise RequestError("--prompts", expected="a file of prompts", got="none")
    kernels = triton_kernels(executor_kernels, model)
    settings = _settings(old, logits, new_tokens, digest, detail)
    opened = running.open(model, old, settings.digest != "none", kernels)
    chosen = _prompts(opened, prompts, old, settings.new_tokens)
    with progress_on_stderr(quiet) as progress:
        golden = record_golden(
            opened, chosen, settings, _text_ids(opened, text, old), batching=running.batching, progress=progress
        )
    for profile in () if old is None else old.document.profiles:
        golden = golden.with_profile(profile)
    data = golden.to_bytes()
    write_atomically(output, data)
    if not quiet:
        _show(output, golden, opened, len(data))


def _old(output: Path, force: bool, update: bool) -> Golden | None:
    """The golden to be updated. Raises RequestError where something is in the way, or missing."""
    from dsv3export.errors import RequestError
    from dsv3export.golden import Golden

    if update:
        return Golden.read(output)
    check_outputs(output)
    if output.exists() and not force:
        raise RequestError(
            f"output {output}", expected="a new file", got="one that is there", fix="Use --force or --update."
        )
    return None


def _settings(
    old: Golden | None, logits: str | None, new_tokens: int | None, digest: str | None, detail: str | None
) -> Settings:
    """What was asked for; of a golden that is updated, the rest as it was."""
    from dataclasses import replace

    from dsv3export.golden import Settings

    chosen = Settings() if old is None else old.document.settings
    return replace(
        chosen,
        top=chosen.top if logits is None else _top(logits),
        new_tokens=new_tokens or chosen.new_tokens,
        digest=digest or chosen.digest,
        detail=detail or chosen.detail,
    )


def _top(text: str) -> int:
    from dsv3export.errors import RequestError

    if text == "full":
        return 0
    count = text.removeprefix("top-")
    if text == count or not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) < 1 << 24):
        raise RequestError("--logits", expected="top-K with K from 1 on, or full", got=text)
    return int(count)


def _prompts(model: GoldenModel, path: Path | None, old: Golden | None, new_tokens: int) -> list[FilePrompt]:
    """The golden's prompts, then those of the file that are not among them. Raises UserError."""
    from dsv3export.cli.golden.models import encode
    from dsv3export.runtime.prompt_file import FilePrompt, read_prompt_file
    from dsv3export.runtime.requests import Limits

    config = model.config
    limits = Limits(config.vocab_size, config.max_position_embeddings, "the model's max_position_embeddings")
    found = [] if old is None else [
        FilePrompt(prompt.text, list(prompt.ids) if prompt.text is None else encode(model, prompt.text))
        for prompt in old.document.prompts
    ]  # fmt: skip
    if path is not None:
        given = read_prompt_file(path, limits, lambda text: encode(model, text))
        found += [prompt for prompt in given if old is None or prompt not in found]
    for prompt in found:
        limits.check_ids(prompt.ids)
        limits.check_length(len(prompt.ids), new_tokens)
    return found


def _text_ids(model: GoldenModel, text: Path | None, old: Golden | None) -> Sequence[int] | None:
    from dsv3export.cli.golden.models import encode
    from dsv3export.runtime.text_file import read_text

    if text is not None:
        return encode(model, read_text(text), add_special_tokens=False)
    if old is not None and old.document.text is not None:
        ids: list[int] = old.arrays["text.ids"].tolist()
        return ids
    return None


def _show(output: Path, golden: Golden, model: GoldenModel, size: int) -> None:
    document = golden.document
    layers = sum(not value.is_router for value in document.values)
    routers = counted(len(document.values) - layers, "router")
    rows = [
        ("model", model.label),
        ("prompts", f"{len(document.prompts):,}, {counted(document.tokens, 'token')}"),
        ("new tokens", f"{document.settings.new_tokens:,} each"),
        ("inside", f"{counted(layers, 'value')}, {routers}; digest: {document.settings.digest}"),
    ]
    if document.text is not None:
        rows.append(("text", f"{counted(document.text.tokens, 'token')}, perplexity {document.text.perplexity:.4f}"))
    print_facts(f"Recorded {output}", [*rows, ("size", f"{size:,} bytes ({bytes_text(size)})")])
