"""Which kernels are measured at which shapes, and the least that each has to move and to compute.

Shapes are DeepSeek-V3's (technical report, section 4.2). A floor counts every input once and every output once, in the
formats that they are stored in; what a kernel writes between two of its parts does not count, so it shows as time lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil

HIDDEN, WIDTH, EXPERTS, CHOICES, GROUP = 7168, 2048, 256, 8, 128
LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128
LINEARS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
"""(N, K): q_a with kv_a, q_b, kv_b, o, gate with up of an expert, down of an expert."""


@dataclass(frozen=True)
class Floor:
    """The least work of a case.

    Attributes:
        bytes: To and from memory.
        flops: Of products, two for a multiplication and an addition.
        matrix: Whose rate bounds them: "fp8" or "bf16".
    """

    bytes: int
    flops: int = 0
    matrix: str = "bf16"

    def seconds(self, bandwidth: float, rates: Mapping[str, float]) -> float:
        """The longer of both at bytes/s and FLOP/s that a device was seen to do; without a rate, of memory alone."""
        rate = rates.get(self.matrix)
        return max(self.bytes / bandwidth, self.flops / rate if rate else 0.0)


@dataclass(frozen=True)
class Case:
    """A kernel at a shape."""

    kernel: str
    sizes: tuple[tuple[str, int | str], ...]

    @classmethod
    def of(cls, kernel: str, **sizes: int | str) -> Case:
        return cls(kernel, tuple(sizes.items()))

    @property
    def shape(self) -> str:
        """E.g. ``M=64 N=2112 K=7168``."""
        return " ".join(f"{name}={value}" for name, value in self.sizes)

    def number(self, name: str) -> int:
        return int(dict(self.sizes)[name])

    def text(self, name: str) -> str:
        return str(dict(self.sizes)[name])


def _linear_cases() -> Iterator[Case]:
    for rows, inner in LINEARS:
        for tokens in (1, 8, 64, 128, 4096):
            yield Case.of("fp8_gemm", M=tokens, N=rows, K=inner)
    for tokens in (1, 8, 64, 128, 4096):
        yield Case.of("quantise", M=tokens, K=HIDDEN)
    for bits in (4, 8):
        for rows, inner in LINEARS:
            for tokens in (1, 8, 64):
                yield Case.of("int_gemm", bits=bits, M=tokens, N=rows, K=inner)


def _attention_cases() -> Iterator[Case]:
    for cache in ("bf16", "fp8"):
        for heads in (16, 128):
            for batch, length in ((1, 1024), (1, 32768), (8, 4096), (32, 4096), (128, 1024), (128, 4096), (128, 32768)):
                yield Case.of("mla_decode", cache=cache, heads=heads, batch=batch, length=length, queries=1)
            yield Case.of("mla_decode", cache=cache, heads=heads, batch=128, length=4096, queries=2)
    for heads in (16, 128):
        yield Case.of("mla_prefill", heads=heads, batch=1, queries=4096, cached=0)
        yield Case.of("mla_prefill", heads=heads, batch=4, queries=512, cached=3584)
    for batch in (1, 128):
        yield Case.of("latent_append", batch=batch, capacity=4096)


def _expert_cases() -> Iterator[Case]:
    for tokens in (1, 8, 128, 2048):
        yield Case.of("moe_route", tokens=tokens)
    for format_ in ("fp8 1x128", "fp8", "int8", "int4"):
        for tokens in (1, 8, 128, 2048):
            yield Case.of("moe_experts", format=format_, tokens=tokens)


CASES = (*_linear_cases(), *_attention_cases(), *_expert_cases(), Case.of("decode_step", batch=128, length=4096))
"""All that is measured."""
QUICK = frozenset(
    {
        Case.of("fp8_gemm", M=64, N=7168, K=16384),
        Case.of("fp8_gemm", M=4096, N=7168, K=16384),
        Case.of("quantise", M=128, K=HIDDEN),
        Case.of("int_gemm", bits=4, M=1, N=7168, K=16384),
        Case.of("mla_decode", cache="bf16", heads=16, batch=128, length=4096, queries=1),
        Case.of("mla_decode", cache="bf16", heads=128, batch=128, length=4096, queries=1),
        Case.of("mla_prefill", heads=128, batch=1, queries=4096, cached=0),
        Case.of("latent_append", batch=128, capacity=4096),
        Case.of("moe_route", tokens=128),
        Case.of("moe_experts", format="fp8 1x128", tokens=128),
        Case.of("decode_step", batch=128, length=4096),
    }
)
"""One shape of each, those that the goals name."""
TINY = (
    Case.of("fp8_gemm", M=3, N=160, K=256),
    Case.of("quantise", M=3, K=256),
    Case.of("int_gemm", bits=4, M=2, N=64, K=256),
    Case.of("int_gemm", bits=8, M=2, N=64, K=256),
    Case.of("mla_decode", cache="bf16", heads=4, batch=2, length=40, queries=2),
    Case.of("mla_decode", cache="fp8", heads=4, batch=2, length=40, queries=1),
    Case.of("mla_prefill", heads=2, batch=2, queries=5, cached=7),
    Case.of("latent_append", batch=2, capacity=8),
    Case.of("moe_route", tokens=2),
    *(Case.of("moe_experts", format=format_, tokens=2) for format_ in ("fp8 1x128", "fp8", "int8", "int4")),
    Case.of("decode_step", batch=2, length=16),
)
"""For the interpreter."""


@dataclass(frozen=True)
class Model:
    """The sizes that a case does not name: DeepSeek-V3's, or small ones for the interpreter."""

    hidden: int = HIDDEN
    width: int = WIDTH
    experts: int = EXPERTS
    choices: int = CHOICES
    groups: int = 8
    kept_groups: int = 4


TRUE_MODEL = Model()
TINY_MODEL = Model(hidden=256, width=128, experts=8, choices=2, groups=4, kept_groups=2)


def floor_of(case: Case, model: Model = TRUE_MODEL, experts_hit: int = 0) -> Floor:
    """The floor of a case; a decode step's is the sum of its parts' (`decode_step.py`).

    Args:
        model: The sizes that the case does not name.
        experts_hit: For `moe_experts`, how many different experts the tokens chose.
    """
    return _FLOORS[case.kernel](case, model, experts_hit)


def _fp8_gemm(case: Case, _: Model, _hit: int) -> Floor:
    m, n, k = (case.number(name) for name in "MNK")
    scales = 4 * (m * ceil(k / 128) + ceil(n / 128) * ceil(k / 128))
    return Floor(m * k + n * k + scales + 2 * m * n, 2 * m * n * k, "fp8")


def _quantise(case: Case, _: Model, _hit: int) -> Floor:
    m, k = case.number("M"), case.number("K")
    return Floor(3 * m * k + 4 * m * ceil(k / 128))


def _int_gemm(case: Case, _: Model, _hit: int) -> Floor:
    bits, m, n, k = (case.number(name) for name in ("bits", "M", "N", "K"))
    return Floor(2 * m * k + n * k * bits // 8 + 4 * n * ceil(k / GROUP) + 2 * m * n, 2 * m * n * k)


def _mla_decode(case: Case, _: Model, _hit: int) -> Floor:
    heads, batch, length, queries = (case.number(name) for name in ("heads", "batch", "length", "queries"))
    row = 2 * (LATENT + ROPE) if case.text("cache") == "bf16" else LATENT + 2 * (ROPE + LATENT // GROUP)
    ends = 2 * batch * queries * heads * (LATENT + ROPE + LATENT)
    return Floor(batch * length * row + ends, 2 * batch * queries * heads * length * (LATENT + ROPE + LATENT))


def _mla_prefill(case: Case, _: Model, _hit: int) -> Floor:
    heads, batch, queries, cached = (case.number(name) for name in ("heads", "batch", "queries", "cached"))
    keys = batch * (cached + queries) * (heads * (NOPE + VALUE) + ROPE)
    rows = batch * queries * heads * (NOPE + ROPE + VALUE)
    seen = queries * cached + queries * (queries + 1) // 2
    return Floor(2 * (keys + rows), 2 * batch * heads * seen * (NOPE + ROPE + VALUE))


def _latent_append(case: Case, _: Model, _hit: int) -> Floor:
    return Floor(case.number("batch") * (2 * 2 * (LATENT + ROPE) + 8))


def _moe_route(case: Case, model: Model, _hit: int) -> Floor:
    return Floor(4 * (case.number("tokens") + 1) * model.experts + 8 * case.number("tokens") * model.choices)


def _moe_experts(case: Case, model: Model, experts_hit: int) -> Floor:
    tokens, format_ = case.number("tokens"), case.text("format")
    weights = 3 * model.hidden * model.width
    if format_.startswith("fp8"):
        blocks = ceil(model.hidden / 128) * ceil(model.width / 128)
        expert = weights + 3 * 4 * blocks
    else:
        expert = weights * int(format_[3:]) // 8 + 4 * weights // GROUP
    ends = tokens * (2 * 2 * model.hidden + 8 * model.choices)
    matrix = "fp8" if format_ == "fp8 1x128" else "bf16"
    return Floor(experts_hit * expert + ends, 2 * tokens * model.choices * weights, matrix)


_FLOORS: Mapping[str, Callable[[Case, Model, int], Floor]] = {
    "fp8_gemm": _fp8_gemm,
    "quantise": _quantise,
    "int_gemm": _int_gemm,
    "mla_decode": _mla_decode,
    "mla_prefill": _mla_prefill,
    "latent_append": _latent_append,
    "moe_route": _moe_route,
    "moe_experts": _moe_experts,
}
KERNELS = (*_FLOORS, "decode_step")
"""What `--kernels` may name."""
