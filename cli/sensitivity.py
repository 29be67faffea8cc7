"""`dsv3export sensitivity`: which component of which layers suffers most from fewer bits, and a recipe that follows."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from dsv3export.cli.byte_size import byte_size
from dsv3export.cli.command import Command
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.options import PathName, json_option, quiet_option, verbose_option
from dsv3export.cli.outputs import check_outputs
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import bytes_text, print_facts, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.checkpoint import Checkpoint
    from dsv3export.recipe import Precision
    from dsv3export.sensitivity.results import Study, Whole
    from dsv3export.sensitivity.search import Target
    from dsv3export.sensitivity.study import Budget

EXAMPLES = (
    "dsv3export sensitivity examples/tiny-dsv3 --text novel.txt --layer-groups 1",
    "dsv3export sensitivity path/to/DeepSeek-V3 --text novel.txt --max-kl 0.005 -o mix.toml",
    "dsv3export sensitivity path/to/DeepSeek-V3 --text novel.txt --max-bytes 400GB --budget 12h -o mix.toml",
)
_BUDGET = re.compile(r"([1-9][0-9]{0,8})([smh]?)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_LAYER_GROUPS, _TOKENS = 4, 8192


def budget_of(text: str) -> tuple[float, float]:
    """(evaluations, seconds) of ``40``, ``90s``, ``30m`` or ``12h``. Raises BadParameter."""
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"expected a number of evaluations, or a time such as 90s, 30m or 12h, got {text!r}")
    amount = int(match[1])
    return (math.inf, amount * _SECONDS[match[2]]) if match[2] else (amount, math.inf)


def precisions_of(text: str) -> tuple[str, ...]:
    """``int8,int4``: from the one of most bytes down. Raises BadParameter."""
    known = ("bf16", "fp8", "int8", "int4")
    names = tuple(name.strip() for name in text.split(","))
    wrong = [name for name in names if name not in known]
    if wrong or len(set(names)) < len(names):
        raise click.BadParameter(f"expected some of {', '.join(known)}, each once, got {text!r}")
    return tuple(sorted(names, key=known.index))


@click.command("sensitivity", cls=Command, examples=EXAMPLES)
@click.argument("checkpoint", type=PathName(path_type=Path))
@click.option("--text", required=True, type=PathName(path_type=Path), metavar="FILE", help="What to measure on, UTF-8.")
@click.option(
    "--precisions", type=precisions_of, default="int8,int4", show_default=True, metavar="LIST",
    help="What a component may have: some of bf16, fp8, int8, int4.",
)  # fmt: skip
@click.option(
    "--layer-groups", type=click.IntRange(min=1), default=_LAYER_GROUPS, show_default=True, metavar="N",
    help="Cut the layers into N runs, each with schemes of its own; 1: by component alone.",
)  # fmt: skip
@click.option("--max-kl", type=click.FloatRange(min=0, min_open=True), metavar="NATS",
              help="The mix may diverge from float32 by this much a token.")  # fmt: skip
@click.option("--max-bytes", type=byte_size, metavar="SIZE", help="The mix's weights may have so many bytes.")
@click.option("--budget", type=budget_of, metavar="N|TIME",
              help="Run at most N recipes over the text, or for TIME such as 90s or 12h.  [default: all]")  # fmt: skip
@click.option("--calibration", type=PathName(path_type=Path), metavar="FILE",
              help="Fit int8 and int4 weights to this text, as `build --calibration` does.")  # fmt: skip
@click.option(
    "-o", "--output", type=PathName(path_type=Path), metavar="RECIPE", help="Write the mix for build --recipe."
)
@click.option("--journal", type=PathName(path_type=Path), metavar="FILE",
              help="Where measurements are kept.  [default: RECIPE.journal]")  # fmt: skip
@click.option("--chunk-tokens", type=int, default=255, show_default=True, metavar="N", help="As of `eval`.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=_TOKENS, show_default=True, metavar="N",
              help="Measure on the first N tokens of the text.")  # fmt: skip
@quiet_option
@json_option("Print one line of JSON.")
@verbose_option
def command(
    checkpoint: Path,
    text: Path,
    precisions: tuple[str, ...],
    layer_groups: int,
    max_kl: float | None,
    max_bytes: int | None,
    budget: tuple[float, float] | None,
    calibration: Path | None,
    output: Path | None,
    journal: Path | None,
    chunk_tokens: int,
    max_tokens: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Quantise one component of CHECKPOINT at a time, and rank them by the harm that each byte saved does.

    Each component of each run of layers gets each of the precisions while all else stays float32; the executor
    measures KL(float32 || quantised) of the next token. With --max-kl or --max-bytes a mix is chosen, measured itself
    and written to RECIPE; the exit code is 1 where it misses what was asked for.

    A search that was killed goes on when the same command is run again, and a journal serves other targets too.
    """
    from dsv3export.checkpoint import Checkpoint
    from dsv3export.errors import RequestError
    from dsv3export.sensitivity.search import Target
    from dsv3export.sensitivity.study import Budget

    target = None
    if max_kl is not None or max_bytes is not None:
        target = Target(math.inf if max_kl is None else max_kl, math.inf if max_bytes is None else max_bytes)
    elif output is not None:
        raise RequestError("-o", expected="--max-kl or --max-bytes with it, which a mix is chosen for", got="neither")
    check_outputs(output, journal)
    journal = journal or (None if output is None else output.with_name(f"{output.name}.journal"))
    opened = Checkpoint.open(checkpoint)
    ids = _tokens(opened, text, max_tokens)
    study = _study(
        opened, ids, cast("tuple[Precision, ...]", precisions), layer_groups, target, Budget(*budget or ()),
        calibration, journal, chunk_tokens, quiet,
    )  # fmt: skip
    if output is not None and study.recipe is not None:
        write_atomically(output, recipe_text(study).encode())
    if as_json:
        print_json(facts(study, len(ids)))
    elif not quiet:
        show(study, str(checkpoint), len(ids))
    if target is not None and not study.met:
        raise click.exceptions.Exit(1)


def _tokens(checkpoint: Checkpoint, text: Path, most: int) -> list[int]:
    """The text's first tokens, without special ones. Raises UserError."""
    from dsv3export.errors import TokenizerError
    from dsv3export.runtime.text_file import read_text
    from dsv3export.runtime.tokenizer import Tokenizer

    content = read_text(text)
    if not (checkpoint.path / "tokenizer.json").exists():
        raise TokenizerError(str(checkpoint.path), expected="tokenizer.json, to read the text with", got="none")
    return Tokenizer.from_directory(checkpoint.path).encode(content, add_special_tokens=False)[:most]


def _study(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    precisions: tuple[Precision, ...],
    layer_groups: int,
    target: Target | None,
    budget: Budget,
    calibration: Path | None,
    journal: Path | None,
    chunk_tokens: int,
    quiet: bool,
) -> Study:
    from dsv3export import __version__

    # torch comes with these imports.
    from dsv3export.graphs.calibration_text import calibration_sequences
    from dsv3export.graphs.text_runs import TextRuns
    from dsv3export.sensitivity.journal import MeasurementJournal
    from dsv3export.sensitivity.study import Search

    sequences = None if calibration is None else calibration_sequences(calibration, checkpoint)
    runs = TextRuns(checkpoint, ids, chunk_tokens, sequences)
    key = {
        "program": __version__,
        "checkpoint": checkpoint.fingerprint(),
        "text": hashlib.sha256(repr(list(ids)).encode()).hexdigest(),
        "calibration": hashlib.sha256(repr(sequences).encode()).hexdigest(),
        "chunk_tokens": chunk_tokens,
    }
    with progress_on_stderr(quiet) as progress:
        search = Search(
            checkpoint.config, precisions, sequences is not None, layer_groups, budget,
            MeasurementJournal(journal, key), runs.compare, progress,
        )  # fmt: skip
        return search.run(target)


def facts(study: Study, tokens: int) -> dict[str, Any]:
    """The study, JSON-able: bytes, nats, seconds."""
    from dsv3export.compare.json_form import to_json

    record: dict[str, Any] = to_json(study)
    for entry, trial in zip(record["trials"], study.trials, strict=True):
        entry["kl_per_megabyte"] = None if trial.measured is None else trial.harm
    record["recipe"] = None if study.recipe is None else study.recipe.to_json()
    record["choice"] = dict(study.choice)
    return {"tokens": tokens, **record}


def recipe_text(study: Study) -> str:
    """The mix as a recipe file, with what was measured on top."""
    from dsv3export.recipe.toml_text import recipe_toml

    if study.recipe is None or study.mix is None:
        raise ValueError("no mix was chosen")
    measured = study.mix.measured
    return recipe_toml(
        study.recipe,
        (
            "written by dsv3export sensitivity",
            f"KL from float32: {measured.kl:.3e} nats a token measured, {study.mix.predicted_kl:.3e} predicted",
            f"perplexity {measured.perplexity_ratio - 1:+.3%}, {study.mix.nbytes:,} bytes of weights",
        ),
    )


def show(study: Study, checkpoint: str, tokens: int) -> None:
    """Prints a study for people."""
    chosen = dict(study.choice)
    rows = [
        (
            trial.unit,
            trial.precision + (" *" if chosen.get(trial.unit) == trial.precision else ""),
            f"{trial.saved_bytes / 1e6:,.2f}",
            *(("not measured", "", "") if trial.measured is None else (
                f"{trial.measured.kl:.2e} ± {trial.measured.kl_error:.0e}",
                f"{trial.measured.perplexity_ratio - 1:+.3%}", f"{trial.harm:.2e}")),
        )
        for trial in study.trials
    ]  # fmt: skip
    columns = ("component, layers", "precision", "MB saved", "KL, nats", "perplexity", "KL per MB saved")
    print_table(f"{checkpoint}: one at a time, on {tokens:,} tokens", columns, rows, right=columns[2:])
    wholes = [*study.uniform, *([study.mix] if study.mix is not None else [])]
    print_table("All together", ("weights", "MB", "KL, nats", "KL predicted", "perplexity", "same top token"),
                map(_whole_row, wholes), right=("MB", "KL, nats", "KL predicted", "perplexity"))  # fmt: skip
    if study.mix is not None:
        print_facts("The mix (* above)", [("asked for", _asked(study)), ("result", "met" if study.met else "missed")])


def _whole_row(whole: Whole) -> tuple[str, ...]:
    measured = whole.measured
    return (
        whole.name, f"{whole.nbytes / 1e6:,.2f}", f"{measured.kl:.3e} ± {measured.kl_error:.0e}",
        "" if whole.predicted_kl is None else f"{whole.predicted_kl:.3e}",
        f"{measured.perplexity_ratio - 1:+.3%}", f"{measured.top1:.2%}",
    )  # fmt: skip


def _asked(study: Study) -> str:
    parts = [] if math.isinf(study.max_kl) else [f"KL of at most {study.max_kl:g} nats"]
    parts += [] if math.isinf(study.max_bytes) else [f"at most {bytes_text(int(study.max_bytes))} of weights"]
    return ", ".join(parts)
