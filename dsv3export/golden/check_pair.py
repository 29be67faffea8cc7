"""A golden against another one: nothing is run, what both have kept is compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dsv3export.errors import RequestError
from dsv3export.golden.check import judged, require_same_shape
from dsv3export.golden.check_layers import LayerCheck
from dsv3export.golden.check_outputs import recorded_measurements
from dsv3export.golden.check_text import text_changes
from dsv3export.golden.document import Profile
from dsv3export.golden.file import Golden
from dsv3export.golden.results import CheckResult, Measurement


def check_goldens(golden: Golden, other: Golden, profile: Profile, *, label: str, other_label: str) -> CheckResult:
    """Compares two goldens of the same prompts that keep the same of each value.

    Raises:
        RequestError: They are of models of other shapes, of other prompts, or keep other things.
    """
    mine, got = golden.document, other.document
    require_same_shape(golden, other_label, got.identity)
    if [prompt.ids for prompt in mine.prompts] != [prompt.ids for prompt in got.prompts]:
        raise RequestError(f"{label} and {other_label}", expected="goldens of the same prompts", got="other prompts")
    if mine.settings != replace(got.settings, chunk_tokens=mine.settings.chunk_tokens):
        raise RequestError(
            f"{label} and {other_label}", expected="goldens recorded with the same --digest, --detail, --logits and "
            "--new-tokens", got="other ones",
        )  # fmt: skip
    skipped: list[str] = []
    found = _measure(golden, other, skipped)
    return judged(golden, label, found, other_label, got.identity, profile, skipped)


def _measure(golden: Golden, other: Golden, skipped: list[str]) -> Iterator[Measurement]:
    layers = LayerCheck(golden)
    yield from layers.measurements_of(other)
    skipped += layers.not_compared()
    yield from recorded_measurements(golden, other)
    if golden.document.text is None:
        return
    ids = other.arrays.get("text.ids")
    if ids is None or not np.array_equal(golden.arrays["text.ids"], ids):
        skipped.append("the text's perplexity: the other golden has not the same text")
    elif golden.document.settings.chunk_tokens != other.document.settings.chunk_tokens:
        skipped.append("the text's perplexity: the other golden has cut the text into other chunks")
    else:
        yield from text_changes(golden, other.arrays["text.nll"].astype(np.float64))
