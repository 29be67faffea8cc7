"""`dsv3export run`: text from an engine. Imports neither torch nor onnx."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.command import Command
from dsv3export.cli.launch import RankOptions, ranks_options, take_place
from dsv3export.cli.loading import load_engine
from dsv3export.cli.options import (
    PathName,
    cpu_kernels_option,
    invariant_option,
    json_option,
    prefix_cache_option,
    provider_option,
    speculate_option,
    verbose_option,
)
from dsv3export.cli.prompt import read_prompt
from dsv3export.cli.tables import bytes_text, print_json
from dsv3export.cli.transcript import Stats, Transcript
from dsv3export.errors import RequestError

if TYPE_CHECKING:
    from dsv3export.runtime.distributed.worker import RankFigures
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice

EXAMPLES = (
    'dsv3export run tiny.engine --prompt "And it came to pass"',
    "dsv3export run tiny.engine --prompt - --json < prompt.txt",
    'dsv3export run tiny.engine --prompt "In the beginning" --temperature 0.7 --top-p 0.95 --seed 1',
    "dsv3export run tiny.engine --prompt-ids 0,12,7 --max-new-tokens 16 --stats",
    'dsv3export run tiny.engine --interactive --system "Be brief."',
    "dsv3export run tiny.engine --input-file prompts.jsonl -o answers.jsonl --batch 32",
    'dsv3export run cuda.engine --prompt "And it came to pass" --provider cuda',
    'dsv3export run tp2.engine --nproc 2 --prompt "And it came to pass"',
)


@click.command("run", cls=Command, examples=EXAMPLES)
@click.argument("engine", type=PathName(path_type=Path))
@click.option("--prompt", metavar="TEXT", help="The prompt; - reads it from stdin.")
@click.option("--prompt-ids", metavar="IDS", help="The prompt as token ids separated by commas, taken as they are.")
@click.option("--interactive", "-i", is_flag=True, help="Talk with the model, by the checkpoint's chat template.")
@click.option("--system", metavar="TEXT", help="With --interactive: the system message.")
@click.option("--input-file", type=PathName(path_type=Path), metavar="FILE",
              help="All prompts of a file: a text a line, or in FILE.jsonl an object with prompt, prompt_token_ids "
                   "or messages, and options.")  # fmt: skip
@click.option("--output", "-o", type=PathName(path_type=Path), metavar="FILE",
              help="With --input-file: write results here; where some are there already, go on.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 4096), default=16, show_default=True, metavar="N",
              help="With --input-file: prompts that run at once.")  # fmt: skip
@click.option(
    "--max-new-tokens", type=int, metavar="N", help="Stop after N tokens [default: 128, or what the context leaves]."
)
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, metavar="T", help="0 takes the likeliest token."
)
@click.option("--top-k", type=int, default=0, metavar="K", help="Sample among the K likeliest tokens; 0 for all.")
@click.option("--top-p", type=float, default=1.0, metavar="P", help="Sample among the fewest tokens that reach P.")
@click.option(
    "--min-p", type=float, default=0.0, metavar="P", help="Sample among tokens at least P times as likely as the best."
)
@click.option("--frequency-penalty", type=float, default=0.0, metavar="X",
              help="Make tokens less likely by each time that they came already, -2 to 2.")  # fmt: skip
@click.option("--presence-penalty", type=float, default=0.0, metavar="X",
              help="Make tokens less likely that came already, -2 to 2.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token.")
@click.option("--logprobs", type=int, metavar="N",
              help="With JSON: log-probabilities of each token and of the N likeliest.")  # fmt: skip
@click.option("--threads", type=int, metavar="N", help="CPU threads [default: the physical cores].")
@provider_option
@cpu_kernels_option
@invariant_option
@speculate_option
@prefix_cache_option
@ranks_options
@click.option("--stats", is_flag=True, help="Say times and rates on stderr at the end.")
@json_option("Print one line of JSON when all is done, instead of streaming.")
@verbose_option
def command(
    engine: Path, prompt: str | None, prompt_ids: str | None, interactive: bool, system: str | None,
    input_file: Path | None, output: Path | None, batch: int, threads: int | None, provider: Choice,
    cpu_kernels: KernelChoice, invariant: bool, speculate: int, prefix_cache: int | None, ranks: RankOptions,
    stats: bool, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Generate text with ENGINE, the directory that `build` wrote: for a prompt, in a conversation, for a file.

    The text goes to stdout as it comes, in UTF-8, with a line break at the end.
    """
    from dsv3export.runtime.sampling import SamplingParams

    _check_modes(interactive, system, input_file, output, as_json, prompt is not None or prompt_ids is not None)
    # Checked by the engine too, but a mistake here should not cost the time that loading takes.
    SamplingParams(**{field.name: how[field.name] for field in fields(SamplingParams) if field.name in how})
    take_place(engine, ranks, threads, cpu_kernels)
    single = not interactive and input_file is None
    tokens = read_prompt(prompt, prompt_ids) if single else ""
    started = time.perf_counter()
    # A single prompt has nothing before it to begin as.
    kept = 0 if single else prefix_cache
    loaded = load_engine(
        engine,
        threads,
        provider,
        cpu_kernels=cpu_kernels,
        invariant=invariant,
        max_batch=batch,
        speculate=speculate,
        prefix_cache=kept,
        **ranks.timeouts,
    )
    load_seconds = time.perf_counter() - started
    if interactive:
        _talk(loaded, system, how, load_seconds if stats else None)
    elif input_file is not None:
        from dsv3export.cli.prompt_file import read_prompts
        from dsv3export.cli.run_file import run_file

        run_file(loaded, read_prompts(input_file, loaded, how), output)
    else:
        _continue(loaded, tokens, how, as_json, load_seconds, stats)


def _check_modes(
    interactive: bool, system: str | None, input_file: Path | None, output: Path | None, as_json: bool, prompt: bool
) -> None:
    """Raises RequestError for options that do not go together."""
    if interactive + (input_file is not None) + prompt > 1:
        expected = "one of --prompt, --prompt-ids, --interactive and --input-file"
        raise RequestError("prompt", expected=expected, got="several")
    if system is not None and not interactive:
        raise RequestError("--system", expected="--interactive with it")
    if output is not None and input_file is None:
        raise RequestError("--output", expected="--input-file with it")
    if as_json and (interactive or input_file is not None):
        raise RequestError("--json", expected="a single prompt", got="--interactive or --input-file")


def _talk(engine: Engine, system: str | None, how: dict[str, Any], load_seconds: float | None) -> None:
    from dsv3export.cli.chat import chat
    from dsv3export.runtime.conversation import Conversation

    def say_stats(transcript: Transcript, prompt_tokens: int) -> None:
        if load_seconds is not None:
            click.echo(summary(transcript.stats(engine, prompt_tokens, load_seconds)), err=True)

    chat(Conversation.with_engine(engine, system), how, say_stats)


def _continue(
    engine: Engine, prompt: str | list[int], how: dict[str, Any], as_json: bool, load_seconds: float, stats: bool
) -> None:
    tokens = engine.tokenizer.encode(prompt) if isinstance(prompt, str) and engine.tokenizer else prompt
    transcript = Transcript()
    texts = transcript.follow(engine.stream(tokens, **how))
    if as_json:
        for _ in texts:
            pass
    else:
        _print_as_it_comes(texts)
    measured = transcript.stats(engine, len(tokens), load_seconds)
    if as_json:
        result = {
            "text": transcript.text,
            "token_ids": transcript.token_ids,
            "prompt_token_ids": tokens,
            "finish_reason": transcript.finish_reason,
            "stats": asdict(measured),
        }
        if ranks := engine.rank_figures():
            result["ranks"] = [asdict(each) for each in ranks]
        logprobs = {} if how["logprobs"] is None else {"logprobs": [asdict(each) for each in transcript.logprobs]}
        print_json(result | logprobs)
    if stats:
        click.echo(summary(measured), err=True)
        for each in engine.rank_figures():
            click.echo(rank_summary(each), err=True)


def _print_as_it_comes(texts: Iterable[str]) -> None:
    try:
        for text in texts:
            # `echo` flushes: each piece is seen at once, in a pipe too.
            click.echo(text, nl=False)
    finally:
        click.echo()


def summary(stats: Stats) -> str:
    """The statistics for people, on one line."""
    return (
        f"load {stats.load_seconds:.2f} s; "
        f"prompt {stats.prompt_tokens} tokens in {stats.first_token_seconds:.3f} s"
        f" ({_per_second(stats.prefill_tokens_per_second)}); "
        f"{stats.new_tokens} new tokens, decode {stats.decode_seconds:.3f} s"
        f" ({_per_second(stats.decode_tokens_per_second)}); "
        f"cache {bytes_text(stats.cache_bytes)}; "
        f"peak memory {bytes_text(stats.peak_memory_bytes)}"
        + (f"; {stats.cpu_kernels} kernels" if stats.cpu_kernels else "")
        + (f"; {stats.accepted_drafts} of {stats.drafted_tokens} drafts accepted" if stats.drafted_tokens else "")
    )


def rank_summary(figures: RankFigures) -> str:
    """What one rank has done, on one line."""
    sent = figures.all_reduce_bytes + figures.gather_bytes + figures.send_bytes
    return (
        f"rank {figures.rank}: computed {figures.compute_seconds:.3f} s, waited for others"
        f" {figures.communication_seconds:.3f} s; sent {bytes_text(sent)} and {bytes_text(figures.control_bytes)} of"
        f" commands; cache {bytes_text(figures.cache_bytes)}; peak memory {bytes_text(figures.peak_memory_bytes)}"
    )


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f} tokens/s"
