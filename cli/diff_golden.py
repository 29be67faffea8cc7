"""`dsv3export diff` where A is a golden: the check of that golden, shown layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3export.cli.diff_summary import error_bar
from dsv3export.cli.golden.options import checkpoint_recipe
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import print_facts, print_table
from dsv3export.compare.json_form import to_json
from dsv3export.errors import RequestError
from dsv3export.golden import Golden, GoldenModel, check_golden
from dsv3export.golden.check_pair import check_goldens
from dsv3export.golden.diff import Agreement, GoldenDiff, LayerLine, golden_diff
from dsv3export.golden.profile import find_profile, profile_name
from dsv3export.golden.texts import case_text
from dsv3export.report.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.text import Text

    from dsv3export.runtime.kernel_choice import KernelChoice

KIND, VERSION = "dsv3export golden diff", 1
_PROPAGATED = (
    "propagated, of tokens with the same experts; a golden has no weights: what a layer adds by itself is not known"
)


def is_golden(expected: str, got: str) -> bool:
    """Whether A is a golden. Raises RequestError where only B is one."""
    if Golden.is_at(Path(expected)):
        return True
    if Golden.is_at(Path(got)):
        raise RequestError(
            f"B {got}", expected="the model in question", got="a golden", fix="Give the golden as A, which is right."
        )
    return False


def refuse_options(given: Mapping[str, object], got: str = "a golden as A") -> None:
    """Raises RequestError for an option that has a value and means nothing for what is compared."""
    for name, value in given.items():
        if value is not None:
            raise RequestError(name, expected="models to be run", got=got)


def diff_with_golden(
    golden: str,
    model: str,
    *,
    prompts: Path | None,
    profile: str | None,
    precision: str | None,
    calibration: Path | None,
    threads: int | None,
    cpu_kernels: KernelChoice = "auto",
    quiet: bool,
) -> GoldenDiff:
    """Holds an engine, a checkpoint or another golden against a golden, with the bounds of `golden check`.

    Args:
        prompts: The golden's own, if any: it has them.

    Raises UserError.
    """
    opened = _with_layers(golden)
    if Golden.is_at(Path(model)):
        refuse_options({"--precision": precision, "--calibration": calibration, "--prompts": prompts}, "goldens alone")
        return _of_two(opened, golden, model, profile)
    from dsv3export.cli.golden.models import open_model

    document = opened.document
    recipe = checkpoint_recipe(precision, calibration is not None, document.identity.recipe)
    subject = open_model(model, recipe=recipe, calibration=calibration, threads=threads, cpu_kernels=cpu_kernels)
    if prompts is not None:
        _require_own_prompts(prompts, opened, subject)
    bounds, where = find_profile(profile or profile_name(document.identity, subject.identity), document.profiles)
    with progress_on_stderr(quiet) as progress:
        result = check_golden(opened, subject, bounds, label=golden, progress=progress)
    return golden_diff(document, result, where)


def _of_two(opened: Golden, golden: str, path: str, profile: str | None) -> GoldenDiff:
    other, document = _with_layers(path), opened.document
    identity = other.document.identity
    bounds, where = find_profile(profile or profile_name(document.identity, identity), document.profiles)
    label = f"{path} (golden of {identity.arithmetic})"
    return golden_diff(document, check_goldens(opened, other, bounds, label=golden, other_label=label), where)


def _with_layers(path: str) -> Golden:
    golden = Golden.read(Path(path))
    if not golden.document.values:
        raise RequestError(
            path, expected="a golden that has looked into the layers", got="one of outputs alone",
            fix="Use `golden check`, or record it with --digest.",
        )  # fmt: skip
    return golden


def _require_own_prompts(path: Path, golden: Golden, model: GoldenModel) -> None:
    from dsv3export.cli.golden.models import encode
    from dsv3export.runtime.prompt_file import read_prompt_file
    from dsv3export.runtime.requests import Limits

    config = model.config
    limits = Limits(config.vocab_size, config.max_position_embeddings, "the model's max_position_embeddings")
    given = [tuple(prompt.ids) for prompt in read_prompt_file(path, limits, lambda text: encode(model, text))]
    if given != [prompt.ids for prompt in golden.document.prompts]:
        raise RequestError(
            f"--prompts {path}", expected="the prompts that the golden was recorded with", got="others",
            fix="Leave --prompts out: the golden has them.",
        )  # fmt: skip


def report_golden_diff(diff: GoldenDiff, json_file: Path | None, html_file: Path | None, show_all: bool) -> None:
    """The whole comparison as JSON, the page of `golden check`, and what is printed for people."""
    if json_file is not None:
        value = {"kind": KIND, "version": VERSION, **to_json(diff)}
        write_atomically(json_file, json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if html_file is not None:
        from dsv3export.golden.page import check_page

        write_atomically(html_file, check_page(diff.result))
    _show(diff, show_all)


def _show(diff: GoldenDiff, show_all: bool) -> None:
    result = diff.result
    facts = [
        ("A", f"{visible(result.golden)} (golden; digest: {diff.digest}; log-probabilities: {_kept(diff.top)})"),
        ("B", visible(result.model)),
        ("bounds", visible(f"{result.profile} ({diff.bounds})")),
        ("errors", _PROPAGATED),
        *(("note", visible(note)) for note in result.notes),
        *(("not compared", visible(reason)) for reason in result.skipped),
    ]
    print_facts("Compared", facts)
    columns = ("value" if show_all else "layer", "error so far", "", "worst of all at", "median", "flips", "overlap",
               "margin", "weights")  # fmt: skip
    rows = [_row(line) for line in (diff.values if show_all else diff.layers)]
    print_table("Layer by layer (relative errors)", columns, rows, right=(columns[1], *columns[4:]))
    print_facts(
        "Next-token distributions",
        [
            *_agreement("prompts", diff.logits),
            *_agreement("continuation", diff.continuation),
            ("first fault", _fault(diff)),
        ],
    )


def _row(line: LayerLine) -> Sequence[str | Text]:
    case = line.error
    place = None if case is None else case.measured.place
    where = "" if case is None or place is None else f"prompt {case.measured.prompt}, position {place.position}"
    if case is not None and case.measured.layer != line.name:
        where = f"{visible(str(case.measured.layer).removeprefix(line.name + '.'))}, {where}"
    return (
        visible(line.name),
        "" if case is None else f"{case.measured.value:.1e}",
        "" if case is None else error_bar(case.measured.value, case.bound),
        where,
        _short(line.median),
        "" if line.flips is None else str(line.flips),
        "" if line.overlap is None else f"{line.overlap:.2%}",
        _short(line.margin),
        _short(line.weights),
    )


def _fault(diff: GoldenDiff) -> str:
    first = diff.result.first_failure
    if first is None:
        return f"none beyond {visible(diff.result.profile)}"
    of_digest = first.measured.metric == "layers.error" and diff.digest != "full"
    return visible(case_text(first)) + (f" (numbers of the digest: {diff.digest})" if of_digest else "")


def _kept(top: int) -> str:
    return f"top-{top}" if top else "all"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _agreement(label: str, seen: Agreement | None) -> list[tuple[str, str]]:
    if seen is None:
        return []
    mean = "" if seen.kl_mean is None else f"{seen.kl_mean:.3e} nats, "
    top1 = "" if seen.top1 is None else f"; top-1 {seen.top1:.2%}"
    return [(label, f"KL divergence {mean}at most {seen.kl_max:.3e} nats{top1} of {seen.positions:,} positions")]
