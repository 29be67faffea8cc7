"""How two routers' choices differ, and which differences their scores explain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dsv3export.config import ModelConfig

Array = NDArray[Any]
# Scores that differ in their last bits only: two right float32 sigmoids.
_FLOAT_NOISE = 1e-6
# Two sums of two scores each are compared when groups are chosen.
_SCORES_IN_A_DECISION = 4


@dataclass(frozen=True)
class Flip:
    """A token that the two routers send to different experts.

    Attributes:
        prompt, position: Which token.
        expected, got: Both choices, ascending.
        margin: How far the expected choice was from another one, in scores: the least gap between the last expert or
            group that was chosen and the first that was not.
        moved: The largest difference between the two sides' scores.
    """

    prompt: int
    position: int
    expected: tuple[int, ...]
    got: tuple[int, ...]
    margin: float
    moved: float

    @property
    def explained(self) -> bool:
        """Whether the scores moved enough to change the choice; if not, the router itself is wrong."""
        return self.margin <= _SCORES_IN_A_DECISION * self.moved + _FLOAT_NOISE


@dataclass(frozen=True)
class RoutingSummary:
    """`overlap` is the share of equal choices, 0 to 1; `flips` are all tokens with other experts, in order."""

    tokens: int
    overlap: float
    flips: tuple[Flip, ...]


class Routing:
    """Accumulates the choices of one layer, a prompt at a time."""

    def __init__(self, config: ModelConfig, bias: Array | None) -> None:
        self._config = config
        self._bias = 0.0 if bias is None else bias.astype(np.float64)
        self._tokens, self._overlap = 0, 0.0
        self._flips: list[Flip] = []

    def add(self, prompt: int, expected: Array, got: Array, logits: tuple[Array, Array]) -> list[Flip]:
        """A prompt's choices; returns its flips.

        Args:
            expected, got: Experts' numbers, int64 [S, k], of distinct ones in each row.
            logits: The router's logits of both sides, [S, E].
        """
        mine, other = (np.sort(ids, axis=1) for ids in (expected, got))
        scores = [self._scores(each.astype(np.float64)) for each in logits]
        flips = []
        for position in np.flatnonzero((mine != other).any(axis=1)):
            before, after = (each[position] for each in scores)
            flips.append(
                Flip(
                    prompt,
                    int(position),
                    tuple(mine[position].tolist()),
                    tuple(other[position].tolist()),
                    self._margin(before),
                    float(np.abs(before - after).max()),
                )
            )
        self._tokens += len(mine)
        missing = sum(len(set(flip.expected) - set(flip.got)) for flip in flips)
        self._overlap += len(mine) - missing / mine.shape[1]
        self._flips += flips
        return flips

    def margins(self, logits: Array) -> NDArray[np.float64]:
        """How far each token's choice was from another one, [S]; `logits` are the router's, [S, E]. See `Flip`."""
        return np.array([self._margin(scores) for scores in self._scores(logits.astype(np.float64))], np.float64)

    def summary(self) -> RoutingSummary:
        return RoutingSummary(self._tokens, self._overlap / self._tokens if self._tokens else 1.0, tuple(self._flips))

    def _scores(self, logits: Array) -> Array:
        """What the selection goes by (DeepSeek-V3, eq. 16): sigmoid or softmax, and the bias."""
        if self._config.scoring_func == "sigmoid":
            scores = (1 + np.tanh(logits / 2)) / 2
        else:
            exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores = exponents / exponents.sum(axis=1, keepdims=True)
        biased: Array = scores + self._bias
        return biased

    def _margin(self, scores: Array) -> float:
        """The least gap between what one token's scores [E] choose and what they do not."""
        config = self._config
        gaps = []
        if config.n_group > 1:
            grouped = scores.reshape(config.n_group, -1)
            best = 2 if config.topk_method == "noaux_tc" else 1
            groups = np.sort(grouped, axis=1)[:, -best:].sum(axis=1)
            gaps.append(_gap(groups, config.topk_group))
            scores = grouped[np.argsort(-groups, kind="stable")[: config.topk_group]].ravel()
        gaps.append(_gap(scores, config.num_experts_per_tok))
        return min(gaps)


def _gap(scores: Array, chosen: int) -> float:
    """From the worst of the `chosen` best to the next one; infinite where all are chosen."""
    ordered = np.sort(scores)[::-1]
    return float(ordered[chosen - 1] - ordered[chosen]) if chosen < len(ordered) else math.inf
