"""The perplexity of a golden's text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dsv3export.evaluate import LanguageModel, evaluate
from dsv3export.golden.file import Golden
from dsv3export.golden.results import Measurement, Place
from dsv3export.progress import Progress


def text_measurements(golden: Golden, model: LanguageModel, progress: Progress) -> Iterator[Measurement]:
    """What the text costs on the whole, and by chunk: a difference of means over the same tokens."""
    chunk = golden.document.settings.chunk_tokens
    found = evaluate(model, golden.arrays["text.ids"].tolist(), chunk, progress)
    yield from text_changes(golden, found.token_nll)


def text_changes(golden: Golden, token_nll: NDArray[np.float64]) -> Iterator[Measurement]:
    """The same of what each token has cost."""
    chunk = golden.document.settings.chunk_tokens
    before = golden.arrays["text.nll"].astype(np.float64)
    change = abs(float((token_nll - before).mean()))
    costs = float(before.mean()), float(token_nll.mean())
    note = f"perplexity {np.exp(costs[0]):.6g} before, {np.exp(costs[1]):.6g} now"
    yield Measurement("text.nll", None, None, change, change, Place(0, None, *costs), note=note)
    starts = np.arange(0, len(before), chunk)
    counts = np.minimum(chunk, len(before) - starts)
    mine, got = (np.add.reduceat(each, starts) / counts for each in (before, token_nll))
    worst = int(np.abs(got - mine).argmax())
    value = float(np.abs(got - mine)[worst])
    yield Measurement(
        "text.chunk", None, None, value, value, Place(int(starts[worst]), None, float(mine[worst]), float(got[worst]))
    )  # fmt: skip
