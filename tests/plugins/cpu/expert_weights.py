"""Banks of random experts' weights of 8 or 4 bits, packed as QMoE wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.plugins.cpu.packed_weights import PackedWeights, random_weights

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertWeights:
    """For each expert gate and up, their rows side by side [2 I, D], and down [D, I]."""

    gate_up: Sequence[PackedWeights]
    down: Sequence[PackedWeights]

    def inputs(self) -> dict[str, NDArray[Any] | None]:
        """The op's weights by name."""
        named: dict[str, NDArray[Any] | None] = {}
        for name, bank in (("gate_up", self.gate_up), ("down", self.down)):
            named[name] = np.stack([one.blocks.reshape(len(one.blocks), -1) for one in bank])
            named[f"{name}_scale"] = np.stack([one.scale for one in bank])
        for name, bank in (("gate_up", self.gate_up), ("down", self.down)):
            zeros = [one.zero_point for one in bank if one.zero_point is not None]
            named[f"{name}_zero"] = np.stack(zeros) if zeros else None
        return named

    def attributes(self, activations: str) -> dict[str, int | float | str]:
        """The op's attributes."""
        down = self.down[0]
        model, hidden = down.numbers.shape
        return {"bits": down.bits, "group": down.group, "activations": activations, "K": model, "I": hidden}


def random_experts(
    generator: np.random.Generator, bits: int, group: int, experts: int, model: int, hidden: int, zero_points: bool
) -> ExpertWeights:
    """Scales such that results are about as large as inputs."""

    def bank(columns: int, depth: int) -> list[PackedWeights]:
        made = [random_weights(generator, bits, group, columns, depth, zero_points) for _ in range(experts)]
        for one in made:
            one.scale[:] *= 100 / (1 << bits) / depth**0.5
        return made

    return ExpertWeights(bank(2 * hidden, model), bank(model, hidden))


def routed(generator: np.random.Generator, tokens: int, k: int, experts: int) -> tuple[NDArray[np.int64], F32]:
    """Distinct experts of each token, in any order, and their weights: ids and weights [tokens, k]."""
    ids = np.array([generator.permutation(experts)[:k] for _ in range(tokens)], np.int64).reshape(tokens, k)
    return ids, generator.uniform(0.1, 1, (tokens, k)).astype(np.float32)


def rounded(x: F32 | F64, group: int) -> F64:
    """x rounded to int8 in groups of each row, and back."""
    rows, depth = x.shape
    padded = np.pad(x, ((0, 0), (0, -depth % group))).reshape(rows, -1, group).astype(np.float32)
    scale = np.abs(padded).max(axis=-1, keepdims=True) / np.float32(127)
    numbers = np.rint(np.divide(padded, scale, out=np.zeros_like(padded), where=scale > 0))
    values: F64 = (numbers.astype(np.float64) * scale).reshape(rows, -1)[:, :depth]
    return values


def expected(x: F32, ids: NDArray[np.int64], weights: F32, bank: ExpertWeights, activations: str) -> F64:
    """The experts' outputs in float64, weighted and summed."""

    def seen(rows: F32 | F64) -> F64:
        return rounded(rows, bank.down[0].group) if activations == "int8" else rows.astype(np.float64)

    y = np.zeros(x.shape)
    for expert in np.unique(ids):
        token, choice = np.nonzero(ids == expert)
        pairs = seen(x[token]) @ bank.gate_up[expert].values.T
        gate, up = pairs[:, ::2], pairs[:, 1::2]
        each = seen(gate / (1 + np.exp(-gate)) * up) @ bank.down[expert].values.T
        np.add.at(y, token, each * weights[token, choice, None])
    return y
