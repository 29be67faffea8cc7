"""Holds a model against a golden, by every metric that both have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsv3export.errors import RequestError
from dsv3export.golden.check_layers import LayerCheck
from dsv3export.golden.check_outputs import output_measurements
from dsv3export.golden.check_text import text_measurements
from dsv3export.golden.document import Identity, Profile
from dsv3export.golden.file import Golden
from dsv3export.golden.model import GoldenModel
from dsv3export.golden.outputs import Batching
from dsv3export.golden.results import EXACT, Case, CheckResult, Measurement, Place
from dsv3export.progress import NoProgress, Progress


def check_golden(
    golden: Golden,
    model: GoldenModel,
    profile: Profile,
    *,
    label: str = "golden",
    batching: Batching | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    """Runs a model on the golden's prompts and compares.

    Args:
        profile: The bounds; a metric without one is not judged.
        label: Names the golden in reports.
        batching: Of the prompts; does not matter to a right engine.

    Raises:
        RequestError: The model has another shape, or the profile has no bound for anything.
    """
    require_same_shape(golden, model.label, model.identity)
    skipped: list[str] = []
    found = measure(golden, model, batching, progress or NoProgress(), skipped)
    return judged(golden, label, found, model.label, model.identity, profile, skipped)


def judged(
    golden: Golden,
    label: str,
    measurements: Iterable[Measurement],
    other: str,
    identity: Identity,
    profile: Profile,
    skipped: list[str],
) -> CheckResult:
    """Figures of another model or golden and their bounds. Raises RequestError where there is a bound for none."""
    cases = []
    for measured in measurements:
        bound = 0.0 if measured.metric == EXACT else profile.bound(measured.metric)
        if bound is None:
            skipped.append(f"{measured.metric}: the profile has no bound")
        else:
            cases.append(Case(measured, bound))
    if all(case.measured.metric == EXACT for case in cases):
        raise RequestError(
            f"profile {profile.name!r}", expected="bounds for what the golden and the model have in common", got="none"
        )
    notes = tuple(_notes(golden.document.identity, identity))
    return CheckResult(label, other, profile.name, tuple(cases), tuple(dict.fromkeys(skipped)), notes)


def measure(
    golden: Golden, model: GoldenModel, batching: Batching | None, progress: Progress, skipped: list[str]
) -> Iterator[Measurement]:
    """Every figure, in the order in which a model computes; what could not be had is added to `skipped`."""
    document = golden.document
    yield from _tokens(golden, model, skipped)
    if document.values and model.stages is not None:
        layers = LayerCheck(golden)
        yield from layers.measurements(model.stages([prompt.ids for prompt in document.prompts]), progress)
        skipped += layers.not_compared()
    elif document.values:
        skipped.append("layers and routers: the model was not looked into")
    if model.session is None:
        skipped.append("logits and continuations: the model was only looked into")
    else:
        yield from output_measurements(golden, model.session, batching, progress)
    if document.text is not None:
        if model.language_model is None:
            skipped.append("the text's perplexity: the model was only looked into")
        else:
            yield from text_measurements(golden, model.language_model, progress)


def require_same_shape(golden: Golden, label: str, other: Identity) -> None:
    """Raises RequestError unless a model can compute what the golden holds at all."""
    mine = golden.document.identity
    if mine.shape != other.shape:
        raise RequestError(f"{label} and the golden", expected=_shape(mine), got=_shape(other))


def _shape(identity: Identity) -> str:
    return (
        f"a model of {len(identity.layers)} layers, hidden size {identity.hidden_size}, "
        f"{identity.n_routed_experts} experts, vocabulary {identity.vocab_size}"
    )


def _tokens(golden: Golden, model: GoldenModel, skipped: list[str]) -> Iterator[Measurement]:
    """Whether texts still become the same tokens."""
    prompts = golden.document.prompts
    if model.tokenizer is None:
        if any(prompt.text is not None for prompt in prompts):
            skipped.append("tokens: the model has no tokenizer")
        return
    for number, prompt in enumerate(prompts):
        if prompt.text is None:
            continue
        mine, got = list(prompt.ids), model.tokenizer.encode(prompt.text)
        differ = [place for place, (one, other) in enumerate(zip(mine, got, strict=False)) if one != other]
        count = len(differ) + abs(len(mine) - len(got))
        place = None
        if count:
            first = min([*differ, len(mine), len(got)])
            place = Place(first, None, mine[first : first + 3], got[first : first + 3])
        yield Measurement("tokens", number, None, float(count), float(count), place)


def _notes(mine: Identity, other: Identity) -> Iterator[str]:
    if mine.config_sha256 != other.config_sha256:
        yield "config.json is another one than when the golden was recorded"
    if mine.checkpoint_sha256 != other.checkpoint_sha256:
        yield "the weights come from another checkpoint than when the golden was recorded"
    if mine.tokenizer_sha256 != other.tokenizer_sha256:
        yield "tokenizer.json is another one than when the golden was recorded"
