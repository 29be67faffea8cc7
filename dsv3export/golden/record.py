"""Runs a model on prompts and keeps what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3export import __version__
from dsv3export.errors import EngineError, InternalError, RequestError
from dsv3export.evaluate import evaluate
from dsv3export.golden.check_outputs import prompt_cost
from dsv3export.golden.document import FORMAT, VERSION, Document, LayerValue, Prompt, Settings, Text
from dsv3export.golden.file import Golden
from dsv3export.golden.layers import record_layers
from dsv3export.golden.model import GoldenModel
from dsv3export.golden.outputs import Batching, run_prompts
from dsv3export.golden.top_logits import TopLogits, top_logits
from dsv3export.progress import NoProgress, Progress
from dsv3export.runtime.prompt_file import FilePrompt
from dsv3export.runtime.session import Logits

Array = NDArray[Any]


def record_golden(
    model: GoldenModel,
    prompts: Sequence[FilePrompt],
    settings: Settings,
    text_ids: Sequence[int] | None = None,
    *,
    batching: Batching | None = None,
    progress: Progress | None = None,
) -> Golden:
    """Record a golden.

    Args:
        model: With a session, and with `stages` unless `settings.digest` is "none".
        prompts: At least one; prompt and new tokens fit into the model's context.
        text_ids: A text's tokens, whose perplexity is taken.

    Raises:
        EngineError: The model computes something that is no number.
        RequestError: More tokens are to be kept than there are.
        UserError: As `evaluate` and the model's own.
    """
    if settings.top > model.identity.vocab_size:
        most = model.identity.vocab_size
        raise RequestError("top tokens to record", expected=f"at most the vocabulary, {most}", got=str(settings.top))
    progress = progress or NoProgress()
    ids = [prompt.ids for prompt in prompts]
    outputs = _record_outputs(model, ids, settings, batching, progress)
    values: tuple[LayerValue, ...] = ()
    arrays = dict(outputs.arrays)
    if settings.digest != "none":
        if model.stages is None:
            raise InternalError("a model that cannot be looked into")
        values, inner = record_layers(model.stages(ids), ids, settings, progress)
        arrays |= inner
    text = None
    if text_ids is not None:
        if model.language_model is None:
            raise InternalError("a model that is only looked into")
        found = evaluate(model.language_model, text_ids, settings.chunk_tokens, progress)
        text = Text(found.tokens, found.perplexity)
        arrays |= {"text.ids": np.asarray(text_ids, np.int32), "text.nll": found.token_nll.astype(np.float32)}
    recorded = tuple(
        Prompt(prompt.text, tuple(prompt.ids), tuple(outputs.greedy[number]), outputs.nll[number])
        for number, prompt in enumerate(prompts)
    )
    document = Document(
        FORMAT, VERSION, f"dsv3export {__version__}", model.identity, settings, recorded, values, text, (), ""
    )
    return Golden(document, arrays)


class _Outputs(NamedTuple):
    greedy: list[list[int]]
    nll: list[float]
    arrays: dict[str, Array]


def _record_outputs(
    model: GoldenModel, prompts: Sequence[Sequence[int]], settings: Settings, batching: Batching | None,
    progress: Progress,
) -> _Outputs:  # fmt: skip
    if model.session is None:
        raise InternalError("a model that is only looked into")
    greedy: list[list[int]] = [[] for _ in prompts]
    nll = [0.0] * len(prompts)
    kept: dict[tuple[str, int], list[TopLogits]] = {}

    def follow(prompt: int, step: int, logits: Logits) -> int:
        greedy[prompt].append(int(logits.argmax()))
        return greedy[prompt][-1]

    progress.start("prompts", sum(len(ids) + settings.new_tokens for ids in prompts), "tokens")
    for rows in run_prompts(model.session, prompts, settings.new_tokens, follow, batching):
        if not np.isfinite(rows.logits).all():
            raise EngineError(f"logits of prompt {rows.prompt}", expected="finite numbers to record", got="inf or NaN")
        kept.setdefault((rows.part, rows.prompt), []).append(top_logits(rows.logits, settings.top))
        if rows.part == "logits":
            targets = np.array(prompts[rows.prompt][rows.start + 1 : rows.start + 1 + len(rows.logits)], np.int64)
            nll[rows.prompt] += prompt_cost(rows.logits[: len(targets)], targets)
        progress.advance(len(rows.logits))
    progress.finish()
    arrays: dict[str, Array] = {}
    for part in ("logits", "greedy"):
        pieces = [piece for number in range(len(prompts)) for piece in kept[part, number]]
        arrays[f"{part}.values"] = np.concatenate([piece.values for piece in pieces])
        arrays[f"{part}.total"] = np.concatenate([piece.total for piece in pieces])
        if settings.top:
            arrays[f"{part}.ids"] = np.concatenate([piece.ids for piece in pieces if piece.ids is not None])
    return _Outputs(greedy, nll, arrays)
