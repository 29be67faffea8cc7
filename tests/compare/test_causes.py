"""The error of a chain of models, split by what each adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsv3export.compare.causes import ErrorSplit, split_causes
from dsv3export.compare.distributions import kl_divergence, log_softmax
from dsv3export.errors import RequestError

WIDTH, TOKENS = 6, (3, 5)
RANDOM = np.random.default_rng(7)
INPUTS = [RANDOM.standard_normal((1, count, WIDTH)) for count in TOKENS]
Array = NDArray[np.float64]


class Chain:
    """A staged model: each stage but the last adds something of its own to what it is given, the head adds nothing."""

    config: Any = None
    label = "toy"

    def __init__(self, additions: Sequence[Sequence[Array]]) -> None:
        self._additions = additions
        self.stages = (*(f"layers.{layer}" for layer in range(len(additions))), "head")
        self._state = list(INPUTS)

    @contextmanager
    def open(self, stage: str) -> Iterator[Any]:
        if stage == "head":
            yield _Stage(self._state, [], "logits")
        else:
            yield _Stage(self._state, self._additions[int(stage.removeprefix("layers."))], "y")


class _Stage:
    handed_on = "y"
    router_bias = None

    def __init__(self, state: list[Array], additions: Sequence[Array], output: str) -> None:
        self._state, self._additions, self.output = state, additions, output

    def run(self, prompt: int, hidden: Any = None) -> dict[str, Array]:
        given = self._state[prompt] if hidden is None else hidden
        result = given + self._additions[prompt] if self._additions else given
        if hidden is None:
            self._state[prompt] = result
        return {"y": result, "logits": result[0]}


def additions(scale: float) -> list[list[Array]]:
    return [[scale * RANDOM.standard_normal((1, count, WIDTH)) for count in TOKENS] for _ in range(2)]


def plus(first: list[list[Array]], second: list[list[Array]]) -> list[list[Array]]:
    return [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)]


def split(*models: list[list[Array]]) -> ErrorSplit:
    names = [f"cause {number}" for number in range(1, len(models))]
    chain = list(zip(names, map(Chain, models[1:]), strict=True))
    return split_causes(Chain(models[0]), chain, len(TOKENS))


def flat(values: Sequence[Array]) -> Array:
    return np.concatenate([value.ravel() for value in values])


def test_steps_and_shares_are_those_of_the_definition() -> None:
    exact, first, second = additions(1), additions(0.1), additions(0.03)
    found = split(exact, plus(exact, first), plus(plus(exact, first), second))
    assert [layer.stage for layer in found.layers] == ["layers.0", "layers.1", "head"]
    for layer in (0, 1):
        inputs = INPUTS if layer == 0 else [x + a for x, a in zip(INPUTS, exact[0], strict=True)]
        size = np.linalg.norm(flat([x + a for x, a in zip(inputs, exact[layer], strict=True)]))
        one, two = flat(first[layer]), flat(second[layer])
        causes = found.layers[layer].causes
        assert np.allclose([cause.relative for cause in causes], [np.linalg.norm(each) / size for each in (one, two)])
        total = one + two
        assert np.isclose(found.layers[layer].total, np.linalg.norm(total) / size)
        assert np.allclose([cause.share for cause in causes], [each @ total / (total @ total) for each in (one, two)])


def test_the_logits_are_those_of_each_model_run_on_its_own() -> None:
    exact, first = additions(1), additions(0.1)
    found = split(exact, plus(exact, first))
    right = [x + a + b for x, a, b in zip(INPUTS, *exact, strict=True)]
    wrong = [x + a + b for x, a, b in zip(right, *first, strict=True)]
    error = flat(wrong) - flat(right)
    assert np.isclose(found.logits.total, np.linalg.norm(error) / np.linalg.norm(flat(right)))
    pairs = zip(right, wrong, strict=True)
    expected = np.concatenate([kl_divergence(log_softmax(a[0]), log_softmax(b[0])) for a, b in pairs]).mean()
    assert np.allclose(found.kl, [expected])
    assert found.layers[-1].total == 0  # the head makes no error of its own


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4))
def test_shares_add_up_to_one(scales: list[float]) -> None:
    models = [additions(1)]
    for scale in [*scales, 0.5]:
        models.append(plus(models[-1], additions(scale)))
    for each in (*split(*models).layers[:2], split(*models).logits):
        assert np.isclose(sum(cause.share for cause in each.causes), 1)


def test_a_cause_that_the_next_one_takes_back() -> None:
    exact = additions(1)
    there = plus(exact, additions(0.1))
    found = split(exact, there, exact)
    assert found.logits.total == 0 and found.logits.causes[0].relative == found.logits.causes[1].relative > 0
    assert {cause.share for cause in found.logits.causes} == {0.0}


def test_no_cause() -> None:
    with pytest.raises(RequestError, match="at least one way"):
        split(additions(1))
