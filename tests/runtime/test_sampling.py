from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsv3export.errors import BackendError, RequestError
from dsv3export.runtime.sampling import Sampler, SamplingParams, _descending, candidates

# few distinct values, so that ties are common
LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-3.5, -1.0, 0.0, 0.25, 1.0, 2.0, 9.0]))
TEMPERATURES = st.floats(0.05, 5.0)


def softmax(logits: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    exponentials = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    result: np.ndarray[Any, np.dtype[np.float64]] = exponentials / exponentials.sum()
    return result


def ranking(logits: np.ndarray[Any, Any]) -> list[int]:
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


FLOATS = arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False))


@given(FLOATS)
def test_ranks_all_floats_with_equals_by_id(logits: Any) -> None:
    assert _descending(logits).tolist() == ranking(logits)


@given(LOGITS)
def test_greedy_takes_the_lowest_id_among_the_largest(logits: Any) -> None:
    assert Sampler(SamplingParams()).sample(logits) == ranking(logits)[0]


@given(LOGITS, TEMPERATURES, st.integers(0, 50))
def test_top_k_keeps_the_k_best(logits: Any, temperature: float, k: int) -> None:
    tokens, probabilities = candidates(logits, SamplingParams(temperature, top_k=k))
    kept = min(k, len(logits)) or len(logits)
    assert tokens.tolist() == ranking(logits)[:kept]
    expected = softmax(logits[tokens], temperature)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


@given(LOGITS, TEMPERATURES, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_sufficient_set(logits: Any, temperature: float, top_p: float) -> None:
    tokens, _ = candidates(logits, SamplingParams(temperature, top_p=top_p))
    assert tokens.tolist() == ranking(logits)[: len(tokens)]
    mass = np.cumsum(softmax(logits, temperature)[tokens])
    assert mass[-1] >= top_p - 1e-9
    assert len(tokens) == 1 or mass[-2] < top_p + 1e-9


@given(LOGITS, TEMPERATURES, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_enough(logits: Any, temperature: float, min_p: float) -> None:
    tokens, _ = candidates(logits, SamplingParams(temperature, min_p=min_p))
    full = softmax(logits, temperature)
    bar = min_p * full.max()
    kept = set(tokens.tolist())
    assert all(full[token] >= bar * (1 - 1e-9) for token in kept)
    assert all(full[token] <= bar * (1 + 1e-9) for token in range(len(logits)) if token not in kept)


def test_the_steps_apply_in_the_documented_order() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    # top_k=3 leaves 4/9, 3/9, 2/9: top_p=0.75 needs two of these, but three of all four; min_p=0.8 then drops the
    # second, which is 0.75 times as likely as the first
    assert candidates(logits, SamplingParams(1.0, top_k=3, top_p=0.75))[0].tolist() == [0, 1]
    assert candidates(logits, SamplingParams(1.0, top_p=0.75))[0].tolist() == [0, 1, 2]
    assert candidates(logits, SamplingParams(1.0, top_k=3, top_p=0.75, min_p=0.8))[0].tolist() == [0]
    # temperature comes first: it flattens the distribution that top_p sees
    assert len(candidates(logits, SamplingParams(1.0, top_p=0.6))[0]) == 2
    assert len(candidates(logits, SamplingParams(10.0, top_p=0.6))[0]) == 3


@pytest.mark.parametrize("params", [SamplingParams(1.0, seed=5), SamplingParams(0.7, top_k=6, top_p=0.9, seed=6)])
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    tokens, probabilities = candidates(logits, params)
    sampler, draws = Sampler(params), 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=8)
    assert set(np.flatnonzero(counts)) <= set(tokens.tolist())
    expected = probabilities * draws
    chi_square = float((((counts[tokens] - expected) ** 2) / expected).sum())
    degrees = len(tokens) - 1
    # mean + 4 standard deviations of the chi-square distribution
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


def test_the_same_seed_gives_the_same_draws_and_requests_differ() -> None:
    logits = np.zeros(1000, np.float32)

    def draw(seed: int | None, index: int) -> list[int]:
        sampler = Sampler(SamplingParams(1.0, seed=seed), index)
        return [sampler.sample(logits) for _ in range(8)]

    assert draw(7, 0) == draw(7, 0)
    assert len({tuple(draw(seed, index)) for seed in (7, 8) for index in (0, 1)}) == 4
    assert draw(None, 0) != draw(None, 0)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert Sampler(SamplingParams(temperature, seed=0)).sample(np.array([1.0, 3.0, 2.0], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "said"),
    [([0, math.nan], "nan for token 1"), ([math.inf, 0], "inf for token 0"), ([-math.inf] * 2, "-inf")],
)
def test_logits_that_are_no_numbers_are_refused(temperature: float, logits: list[float], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        Sampler(SamplingParams(temperature)).sample(np.array(logits, np.float32))


def test_a_token_with_minus_infinity_is_never_drawn() -> None:
    sampler = Sampler(SamplingParams(5.0, seed=1))
    assert {sampler.sample(np.array([0, -math.inf, 0], np.float32)) for _ in range(100)} == {0, 2}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"logit_bias": {3: 101.0}}, "logit_bias"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(RequestError, match=f"^{name}: expected"):
        SamplingParams(**options)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("closeness", [0.0, 0.6, 1.0])
def test_verified_drafts_are_distributed_as_samples(temperature: float, top_k: int, closeness: float) -> None:
    """Whatever the draft's distribution is, frequencies are those of the logits (5 standard deviations)."""
    random = np.random.default_rng(5)
    logits = random.standard_normal(9).astype(np.float32)
    drafting = (closeness * logits + (1 - closeness) * random.standard_normal(9)).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature, top_k=top_k, seed=1))
    draws = 6000
    counts, accepted = np.zeros(9), 0
    for _ in range(draws):
        draft = sampler.draft(drafting)
        token = sampler.verify(logits, draft)
        counts[token] += 1
        accepted += token == draft.token
    expected = np.zeros(9)
    tokens, probabilities = candidates(logits, sampler.params)
    expected[tokens] = probabilities
    deviation = np.sqrt(expected * (1 - expected) / draws) + 1e-12
    assert np.all(np.abs(counts / draws - expected) <= 5 * deviation)
    if closeness == 1:
        assert accepted == draws


def test_a_greedy_draft_is_the_best_token_and_is_judged_so() -> None:
    sampler = Sampler(SamplingParams())
    logits = np.array([0.0, 2.0, 1.0], np.float32)
    draft = sampler.draft(np.array([3.0, 0.0, 1.0], np.float32))
    assert (draft.token, draft.probability) == (0, 1.0)
    assert sampler.verify(logits, draft) == 1
    assert sampler.verify(logits, sampler.draft(logits)) == 1


@given(
    st.lists(arrays(np.float32, 6, elements=st.floats(-9, 9, width=32)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.5, -1.25, 2.0]),
    st.sampled_from([0.0, 0.75, -2.0]),
    st.dictionaries(st.integers(0, 5), st.sampled_from([-100.0, -3.0, 8.0]), max_size=3),
)
def test_penalties_and_bias_are_as_openai_defines_them(
    steps: list[Any], frequency: float, presence: float, bias: dict[int, float]
) -> None:
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias)
    sampler, drawn = Sampler(params), [0] * 6
    for logits in steps:
        expected = [
            np.float32(x) + np.float32(bias.get(i, 0)) - np.float32(frequency * drawn[i] + presence * (drawn[i] > 0))
            for i, x in enumerate(logits)
        ]
        before = logits.copy()
        token = sampler.sample(logits)
        assert token == int(np.argmax(expected)) and np.array_equal(logits, before)
        drawn[token] += 1
