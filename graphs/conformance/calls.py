"""The table of op x precision x phase, and random inputs for each row, made from the op's schema.

Shapes are a small model's whose widths the integer and FP8 formats divide, but for one: the rows of a projection fill
no whole number of FP8 blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dsv3export.dtypes import NUMPY
from dsv3export.plugins import OPS
from dsv3export.plugins.registry import Op, Port

Array = NDArray[Any]
Phase = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = get_args(Phase)

# What a call brings; every other input of an op is a weight.
RUN_TIME = frozenset({"x", "ids", "weights", "logits", "q_nope", "q_pe", "cache", "side", "kv_c", "k_pe", "start"})
# float32 numbers of a size that no right program can overlook, in the rows of a cache that no query may see.
_UNSEEN = 10.0
CAPACITY = 32
GROUP = 128
_STARTS: Mapping[Phase, tuple[int, ...]] = {"decode": (9, 0, 20), "prefill": (0, 7)}
_NEW: Mapping[Phase, int] = {"decode": 1, "prefill": 12}
_HALF = {"bf16": "BF16", "f16": "F16"}
_LARGEST = {"bf16": 2.0**128 - 2.0**120, "f16": 65504.0}

_OPS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("Linear", "LatentAppend", "MlaAttention", "MoERoute", "MoEExperts"),
    "bf16": ("Linear", "LatentAppendHalf", "MlaAttention", "MoEExperts"),
    "f16": ("Linear", "LatentAppendHalf", "MlaAttention", "MoEExperts"),
    "fp8": ("LinearFp8Block", "LatentAppendFp8", "MlaAttentionFp8Block", "MoEExpertsFp8Block"),
    "int8": ("LinearInt", "MlaAttentionInt", "MoEExpertsInt"),
    "int4": ("LinearInt", "MoEExpertsInt"),
}


@dataclass(frozen=True)
class OpCall:
    """One call of an op.

    Attributes:
        precision: Of its weights, or of the cache that it writes.
        phase: A decode step has one new token for each of 3 sequences, a prefill 12 for each of 2.
        inputs: By formal name, in the schema's order.
        sizes: Of the schema's dimensions.
    """

    op: Op
    precision: str
    phase: Phase
    inputs: Mapping[str, Array]
    attributes: Mapping[str, Any]
    sizes: Mapping[str, int]

    @property
    def step(self) -> tuple[int, int]:
        """Sequences, and new tokens of each."""
        return len(_STARTS[self.phase]), _NEW[self.phase]

    @property
    def weights(self) -> dict[str, Array]:
        return {name: array for name, array in self.inputs.items() if name not in RUN_TIME}

    @property
    def run_time(self) -> dict[str, Array]:
        return {name: array for name, array in self.inputs.items() if name in RUN_TIME}

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which rows of a cache the step writes, [B, T]."""
        start, rows = np.array(_STARTS[self.phase])[:, None], np.arange(CAPACITY)
        written: NDArray[np.bool_] = (rows >= start) & (rows < start + _NEW[self.phase])
        return written

    def graph_shape(self, port: Port) -> list[int | str]:
        """A port's dimensions in a graph, where those that change from step to step go by name."""
        names = {"B": "B", "S": "S", "L": "L", "T": "R" if _counts_tokens(self.op) else "T"}
        constant = {} if port.name in RUN_TIME or port in self.op.outputs else self.sizes
        return [constant.get(dim) or names.get(dim) or self.sizes[dim] for dim in port_dims(port)]

    def __str__(self) -> str:
        return f"{self.op.name} {self.precision} {self.phase}"


def port_dims(port: Port) -> tuple[str, ...]:
    """A port's dimensions; a projection's leading ones are those of a step."""
    return ("B", "S", *port.dims[1:]) if port.dims[0] == "..." else port.dims


def calls(int_activations: Literal["none", "int8"], typed_caches: bool = False) -> Iterator[OpCall]:
    """Every row.

    Args:
        int_activations: How a backend multiplies with integer weights.
        typed_caches: Whether its LatentAppend takes 16-bit caches by itself: then LatentAppendHalf is not its own op.
    """
    for precision, names in _OPS.items():
        for row in names:
            name = "LatentAppend" if typed_caches and row == "LatentAppendHalf" else row
            for phase in PHASES:
                op, sizes = OPS[name], _sizes(OPS[name], precision, phase)
                attributes = _attributes(name, precision, int_activations)
                yield OpCall(op, precision, phase, _inputs(op, sizes, precision, phase), attributes, sizes)


def call_count() -> int:
    """How many rows the table has."""
    return len(PHASES) * sum(map(len, _OPS.values()))


def _attributes(op: str, precision: str, int_activations: str) -> dict[str, Any]:
    known: dict[str, Any] = {
        "scale": (64 + 32) ** -0.5, "activations": "none", "group": GROUP, "bits": 4 if precision == "int4" else 8,
        "largest": _LARGEST.get(precision), "k": 4, "n_group": 4, "topk_group": 2, "group_top": 2,
        "scoring": "sigmoid", "normalize": 1, "scaling": 2.5,
    }  # fmt: skip
    if op.endswith("Int"):
        known["activations"] = int_activations
    return {attribute.name: known[attribute.name] for attribute in OPS[op].attributes}


def _counts_tokens(op: Op) -> bool:
    """Whether the op's T are the tokens of a step; elsewhere they are a cache's rows."""
    return op.name.startswith("MoE")


def _sizes(op: Op, precision: str, phase: Phase) -> dict[str, int]:
    """Every dimension that a schema names; K and D are the model's width, N, I and D what it is projected to."""
    batch, new, bits = len(_STARTS[phase]), _NEW[phase], 4 if precision == "int4" else 8
    heads, nope, rope, value, latent = 4, 64, 32, 64, 128
    model, rows, width, experts = 256, 160, 128, 16
    sizes = {
        "B": batch, "S": new, "T": CAPACITY, "H": heads, "Dn": nope, "Dr": rope, "Dc": latent, "Dv": value,
        "Dc+Dr": latent + rope, "Dr+G": rope + 1, "H*(Dn+Dv)": heads * (nope + value), "1": 1, "ceil(Dc/128)": 1,
        "ceil(H*(Dn+Dv)/128)": 4, "K": model, "N": rows, "ceil(N/128)": 2, "ceil(K/128)": 2, "E": experts, "k": 4,
        "D": model, "I": width, "ceil(I/128)": 1, "ceil(D/128)": 2, "P": model * bits // 8, "G": model // GROUP,
        "Q": width * bits // 8, "H*Dv": heads * value,
    }  # fmt: skip
    if _counts_tokens(op):  # here H are the groups of an expert's width
        sizes |= {"T": batch * new, "H": width // GROUP}
    return sizes


def _inputs(op: Op, sizes: Mapping[str, int], precision: str, phase: Phase) -> dict[str, Array]:
    random = np.random.default_rng(list(f"{op.name} {precision} {phase}".encode()))
    return {
        port.name: _fill(random, port, tuple(sizes[dim] for dim in port_dims(port)), precision, phase)
        for port in op.inputs
        if not port.optional
    }


def _fill(
    random: np.random.Generator, port: Port, shape: tuple[int, ...], precision: str, phase: Phase
) -> Array:  # fmt: skip
    if port.name == "start":
        return np.array(_STARTS[phase], np.int64)
    if port.name == "ids":
        return np.array([random.permutation(16)[: shape[1]] for _ in range(shape[0])], np.int64)
    if port.name == "weights":
        return random.uniform(0.1, 1.0, shape).astype(np.float32)
    if port.name in ("cache", "side"):
        return _cache(random, port, shape, precision, phase)
    if port.name.endswith("scale"):
        return (random.uniform(0.5, 1.5, shape) * _unit(port, precision)).astype(np.float32)
    number = _NUMBERS[port.dtypes[0]](random, shape)
    if port.name in RUN_TIME or port.name == "bias" or port.dtypes[0] != "float":
        return number
    return (number / np.float32(shape[-1] ** 0.5)).astype(NUMPY[_HALF.get(precision, "F32")])


_NUMBERS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "float": lambda random, shape: random.standard_normal(shape, dtype=np.float32),
    "uint8": lambda random, shape: random.integers(0, 256, shape, np.uint8),
    "int8": lambda random, shape: random.integers(-127, 128, shape).astype(np.int8),
    "float8e4m3fn": lambda random, shape: (random.normal(0, 100, shape)).clip(-448, 448).astype(NUMPY["F8_E4M3"]),
}


def _unit(port: Port, precision: str) -> float:
    """A scale that makes weights of random numbers about as large as 1 / sqrt(fan-in)."""
    fan_in = 128 if port.name.startswith(("down", "kv_b", "w_u")) else 256
    size = {"fp8": 100.0, "int8": 74.0, "int4": 4.6}[precision]
    return float(1 / (size * fan_in**0.5))


def _cache(
    random: np.random.Generator, port: Port, shape: tuple[int, ...], precision: str, phase: Phase
) -> Array:  # fmt: skip
    numbers = random.standard_normal(shape, dtype=np.float32)
    for slot, start in enumerate(_STARTS[phase]):
        numbers[slot, start + _NEW[phase] :] = _UNSEEN
    dtype = {"float8e4m3fn": "F8_E4M3", "bfloat16": "BF16", "float": "F32"}[port.dtypes[0]]
    if len(port.dtypes) > 1:
        dtype = _HALF[precision]
    return numbers.astype(NUMPY[dtype])
