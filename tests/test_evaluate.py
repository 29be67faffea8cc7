"""Perplexity and divergence: by hand on models with known predictions, and against the goldens."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3export import Engine, evaluate
from dsv3export.config import ModelConfig
from dsv3export.errors import EngineError, RequestError
from dsv3export.evaluate import compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.progress import Unit
from dsv3export.runtime.session import Logits
from tests.support.synthetic import tiny_config

VOCAB = 7
BOS = 3
TEXT = [5, 1, 1, 0, 6, 2, 4, 4, 0, 1]


class Bigrams:
    """Predicts a token from the one before it, by a table of logits; remembers what it was asked."""

    def __init__(self, seed: int | None, **changes: object) -> None:
        config = {"vocab_size": VOCAB, "bos_token_id": BOS, "max_position_embeddings": 512, "eos_token_id": 1}
        self.config = ModelConfig.from_dict(tiny_config(**{**config, "rope_scaling": None, **changes}))
        shape = (self.config.vocab_size, self.config.vocab_size)
        random = np.random.default_rng(seed)
        self.table = (random.normal(0, 2, shape) if seed is not None else np.zeros(shape)).astype(np.float32)
        self.asked: list[list[int]] = []

    def logits(self, token_ids: list[int], /) -> Logits:
        self.asked.append(token_ids)
        return self.table[token_ids]

    def probabilities(self, before: int) -> list[float]:
        """Softmax of one row, in plain Python."""
        weights = [math.exp(float(logit)) for logit in self.table[before]]
        return [weight / sum(weights) for weight in weights]


class Recorder:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, title: str, total: int, unit: Unit) -> None:
        self.calls.append((total, unit))

    def advance(self, amount: int) -> None:
        self.calls.append(amount)

    def finish(self) -> None:
        self.calls.append("finish")


def befores(chunk_tokens: int) -> list[int]:
    """The token that each token of the text is predicted from."""
    return [BOS if place % chunk_tokens == 0 else TEXT[place - 1] for place in range(len(TEXT))]


def test_no_idea_at_all() -> None:
    """Of a model that finds all tokens equally likely, the perplexity is the size of the vocabulary."""
    evaluation = evaluate.evaluate(Bigrams(None), TEXT)
    assert evaluation.perplexity == pytest.approx(VOCAB, rel=1e-12)
    assert evaluation.nll == pytest.approx(len(TEXT) * math.log(VOCAB), rel=1e-12)
    assert evaluation.tokens == len(TEXT)


@pytest.mark.parametrize("block_elements", [1, 3 * VOCAB, 1 << 22])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 10, 15])
def test_each_token_is_predicted_once(chunk_tokens: int, block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK_ELEMENTS", block_elements)
    model, progress = Bigrams(1), Recorder()
    evaluation = evaluate.evaluate(model, TEXT, chunk_tokens, progress)
    chunks = [TEXT[start : start + chunk_tokens] for start in range(0, len(TEXT), chunk_tokens)]
    assert model.asked == [[BOS, *chunk] for chunk in chunks]
    pairs = zip(befores(chunk_tokens), TEXT, strict=True)
    expected = [-math.log(model.probabilities(before)[token]) for before, token in pairs]
    np.testing.assert_allclose(evaluation.token_nll, expected, rtol=1e-12)
    assert evaluation.perplexity == pytest.approx(math.exp(sum(expected) / len(TEXT)), rel=1e-12)
    assert len(evaluation.nll_per_chunk) == len(chunks)
    assert sum(evaluation.nll_per_chunk) == pytest.approx(evaluation.nll, rel=1e-12)
    assert evaluation.nll_per_chunk[0] == pytest.approx(sum(expected[:chunk_tokens]), rel=1e-12)
    assert (progress.calls[0], progress.calls[-1]) == ((len(TEXT), "tokens"), "finish")
    assert sum(amount for amount in progress.calls[1:-1] if isinstance(amount, int)) == len(TEXT)


def test_divergence_by_its_definition() -> None:
    model, against = Bigrams(1), Bigrams(2)
    comparison = compare(model, against, TEXT, 4)
    kl, same = [], []
    for before in befores(4):
        p, q = model.probabilities(before), against.probabilities(before)
        kl.append(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
        same.append(p.index(max(p)) == q.index(max(q)))
    assert 0 < sum(same) < len(same)
    np.testing.assert_allclose(comparison.token_kl, kl, rtol=1e-10)
    assert comparison.kl_mean == pytest.approx(sum(kl) / len(kl), rel=1e-10)
    assert comparison.kl_max == pytest.approx(max(kl), rel=1e-10)
    assert comparison.top1_agreement == pytest.approx(sum(same) / len(same), rel=1e-12)
    assert comparison.model.nll == evaluate.evaluate(model, TEXT, 4).nll
    assert comparison.against.nll == evaluate.evaluate(against, TEXT, 4).nll
    ratio = comparison.model.perplexity / comparison.against.perplexity
    assert comparison.perplexity_ratio == pytest.approx(ratio, rel=1e-12)


def test_errors_by_their_definition() -> None:
    """Each is the sample deviation over the square root of the count; of the ratio, that of paired differences."""
    comparison = compare(Bigrams(1), Bigrams(2), TEXT, 4)
    difference = comparison.model.token_nll - comparison.against.token_nll
    root = math.sqrt(len(TEXT))
    assert comparison.perplexity_ratio_error == pytest.approx(
        comparison.perplexity_ratio * statistics.stdev(difference) / root, rel=1e-12
    )
    assert comparison.kl_error == pytest.approx(statistics.stdev(comparison.token_kl) / root, rel=1e-12)
    assert comparison.top1_error == pytest.approx(statistics.stdev(map(float, comparison.same_top)) / root, rel=1e-12)
    assert comparison.kl_mean < comparison.kl_p99 <= comparison.kl_max


def test_one_token_has_no_error() -> None:
    comparison = compare(Bigrams(1), Bigrams(2), TEXT[:1])
    errors = (comparison.perplexity_ratio_error, comparison.kl_error, comparison.top1_error)
    assert all(math.isnan(error) for error in errors)
    assert comparison.kl_mean == comparison.kl_p99 == comparison.kl_max


def test_a_model_against_itself() -> None:
    comparison = compare(Bigrams(1), Bigrams(1), TEXT)
    assert (comparison.kl_mean, comparison.kl_max) == (0.0, 0.0)
    assert (comparison.perplexity_ratio, comparison.top1_agreement) == (1.0, 1.0)
    assert (comparison.perplexity_ratio_error, comparison.kl_error, comparison.top1_error) == (0.0, 0.0, 0.0)


def test_hopeless_predictions_have_no_finite_perplexity() -> None:
    model = Bigrams(None)
    model.table[:, 0] = 1e6
    assert evaluate.evaluate(model, [1, 2]).perplexity == math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    model = Bigrams(1)
    model.table[6, 2] = bad
    with pytest.raises(EngineError, match="logits of token 5 of the text: expected finite numbers"):
        evaluate.evaluate(model, TEXT)


@pytest.mark.parametrize(
    ("changes", "text", "chunk_tokens", "says"),
    [
        ({}, [], 4, "text: expected at least one token, got none"),
        ({}, TEXT, 0, r"chunk tokens: expected 1 to 511 \(with BOS at most max_position_embeddings, 512\), got 0"),
        ({}, TEXT, -1, "chunk tokens: expected 1 to 511 .* got -1"),
        ({}, TEXT, 512, "chunk tokens: expected 1 to 511 .* got 512"),
        ({"bos_token_id": None}, TEXT, 4, "bos_token_id: expected a token id"),
    ],
)
def test_bad_requests(changes: dict[str, object], text: list[int], chunk_tokens: int, says: str) -> None:
    model = Bigrams(1, **changes)
    with pytest.raises(RequestError, match=says):
        evaluate.evaluate(model, text, chunk_tokens)
    assert model.asked == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": 8}, "vocabularies: expected two of one size, got 7 and 8"),
        ({"bos_token_id": 2}, "vocabularies: expected two with one bos_token_id, got 3 and 2"),
        ({"max_position_embeddings": 8}, "chunk tokens: expected 1 to 7"),
    ],
)
def test_models_that_cannot_be_compared(changes: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        compare(Bigrams(1), Bigrams(1, **changes), TEXT, 8)


def test_goldens(tiny_fp8: Path, tiny_bf16: Path, goldens: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers' own model in float32 sets the figures, chunk by chunk; the executor is the engine's own oracle."""
    for variant, checkpoint in (("fp8", tiny_fp8), ("bf16", tiny_bf16)):
        build_engine(checkpoint, tmp_path / variant)
        engine = Engine.load(tmp_path / variant, threads=1)
        assert engine.tokenizer is not None
        text = (goldens(variant).parent / "heldout.txt").read_text(encoding="utf-8")
        ids = engine.tokenizer.encode(text, add_special_tokens=False)
        golden = json.loads((goldens(variant) / "ppl.json").read_text(encoding="utf-8"))
        for expected in (golden["chunk_255"], golden["chunk_1023"]):
            evaluation = evaluate.evaluate(engine, ids, expected["chunk_tokens"])
            assert evaluation.tokens == expected["n_tokens"]
            assert evaluation.perplexity == pytest.approx(expected["perplexity"], rel=1e-6)
            assert evaluation.nll == pytest.approx(expected["nll_sum"], rel=1e-6)
            np.testing.assert_allclose(evaluation.nll_per_chunk, expected["nll_per_chunk"], rtol=1e-5)
        comparison = compare(engine, Executor.from_checkpoint(checkpoint), ids[:1000])
        assert comparison.top1_agreement == 1.0
        assert comparison.kl_max < 1e-9
        assert comparison.perplexity_ratio == pytest.approx(1.0, rel=1e-6)
