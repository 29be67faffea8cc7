"""Inputs for each dsv3 op over a table of shapes: shared by the tests of the torch ops and of their ONNX functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsv3export.dtypes import NUMPY
from tests.plugins import float64_ops

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One call of an op: `inputs` by formal name in the schema's order."""

    op: str
    name: str
    inputs: Mapping[str, Array]
    attributes: Mapping[str, Any]

    def expected(self) -> tuple[Array, ...]:
        """What the float64 reference computes."""
        definition = getattr(float64_ops, _DEFINITIONS[self.op])
        result = definition(**self.inputs, **self.attributes)
        return result if isinstance(result, tuple) else (result,)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


_DEFINITIONS = {
    "Linear": "linear",
    "LatentAppend": "latent_append",
    "LatentAppendHalf": "latent_append_half",
    "LatentAppendFp8": "latent_append_fp8",
    "MlaAttention": "mla_attention",
    "MoERoute": "moe_route",
    "MoEExperts": "moe_experts",
    "LinearInt": "linear_int",
    "MlaAttentionInt": "mla_attention_int",
    "MoEExpertsInt": "moe_experts_int",
    "LinearFp8Block": "linear_fp8_block",
    "MlaAttentionFp8Block": "mla_attention_fp8_block",
    "MoEExpertsFp8Block": "moe_experts_fp8_block",
}


def linear_case(name: str, leading: Sequence[int], inner: int, outer: int) -> Case:
    normal = _normal(name)
    return Case("Linear", name, {"x": normal(*leading, inner), "weight": normal(outer, inner)}, {})


def latent_append_case(name: str, start: Sequence[int], new: int, capacity: int, latent: int, rope: int) -> Case:
    normal, batch = _normal(name), len(start)
    inputs = {
        "cache": normal(batch, capacity, latent + rope),
        "kv_c": normal(batch, new, latent),
        "k_pe": normal(batch, new, rope),
        "start": np.array(start, np.int64),
    }
    return Case("LatentAppend", name, inputs, {})


def latent_append_half_case(
    name: str, start: Sequence[int], new: int, capacity: int, latent: int, rope: int, dtype: str, size: float = 1.0
) -> Case:
    """`size` scales the new rows; rows of the cache that nothing may read are NaN."""
    base = latent_append_case(name, start, new, capacity, latent, rope).inputs
    inputs = dict(base)
    inputs["cache"] = base["cache"].astype(NUMPY[dtype])
    inputs["cache"][:, max(start) + new :] = np.nan
    inputs |= {port: base[port] * np.float32(size) for port in ("kv_c", "k_pe")}
    largest = {"BF16": 2.0**128 - 2.0**120, "F16": 65504.0}[dtype]
    return Case("LatentAppendHalf", name, inputs, {"largest": largest})


def latent_append_fp8_case(
    name: str, start: Sequence[int], new: int, capacity: int, latent: int, rope: int, groups: int, size: float = 1.0
) -> Case:
    """As `latent_append_half_case`; the numbers of a group differ a lot in size, and some are 0 or -0."""
    base, random = latent_append_case(name, start, new, capacity, latent, rope).inputs, np.random.default_rng(new)
    shape = base["kv_c"].shape
    spread = np.exp(random.uniform(-9, 0, shape)) * (random.random(shape) < 0.9)
    inputs = {
        "cache": (base["cache"][..., :latent] * 100).clip(-448, 448).astype(NUMPY["F8_E4M3"]),
        "side": _normal(f"{name} side")(len(start), capacity, rope + groups).astype(NUMPY["BF16"]),
        "kv_c": (base["kv_c"] * spread * size).astype(np.float32),
        "k_pe": base["k_pe"] * np.float32(size),
        "start": base["start"],
    }
    inputs["kv_c"][0, 0, : latent // groups] = 0.0
    for port in ("cache", "side"):
        inputs[port][:, max(start) + new :] = np.nan
    return Case("LatentAppendFp8", name, inputs, {})


def mla_case(
    name: str,
    start: Sequence[int],
    new: int,
    capacity: int,
    dims: tuple[int, int, int, int, int] = (2, 6, 4, 5, 8),
    scale: float = 0.3,
) -> Case:
    """`dims`: heads, nope, rope, value, latent. Cache rows that no query may see hold large numbers."""
    heads, nope, rope, value, latent = dims
    normal, batch = _normal(name), len(start)
    cache = normal(batch, capacity, latent + rope)
    for slot, first in enumerate(start):
        cache[slot, first + new :] = 1e6
    inputs = {
        "q_nope": normal(batch, new, heads, nope),
        "q_pe": normal(batch, new, heads, rope),
        "cache": cache,
        "kv_b": normal(heads * (nope + value), latent) / np.float32(latent**0.5),
        "start": np.array(start, np.int64),
    }
    return Case("MlaAttention", name, inputs, {"scale": scale})


def mla_int_case(
    name: str,
    start: Sequence[int],
    new: int,
    capacity: int,
    dims: tuple[int, int, int, int, int] = (2, 6, 4, 5, 8),
    scale: float = 0.3,
) -> Case:
    """`mla_case` with random 8-bit up-projections in place of kv_b."""
    heads, nope, _, value, latent = dims
    base, random = mla_case(name, start, new, capacity, dims, scale), np.random.default_rng(_seed(name))
    size = 1 / (74 * latent**0.5)
    weights = {
        "w_uk": random.integers(-127, 128, (heads, nope, latent)).astype(np.int8),
        "w_uk_scale": random.uniform(0.5 * size, 2 * size, (heads, 1, latent)).astype(np.float32),
        "w_uv": random.integers(-127, 128, (heads, latent, value)).astype(np.int8),
        "w_uv_scale": random.uniform(0.5 * size, 2 * size, (heads, 1, value)).astype(np.float32),
    }
    run_time = {port: base.inputs[port] for port in ("q_nope", "q_pe", "cache")}
    return Case("MlaAttentionInt", name, {**run_time, **weights, "start": base.inputs["start"]}, base.attributes)


def route_case(
    name: str,
    tokens: int,
    experts: int,
    k: int,
    groups: tuple[int, int, int] = (1, 1, 1),
    scoring: str = "sigmoid",
    normalize: int = 1,
    scaling: float = 2.5,
    bias: float = 0.3,
    offset: float = 0.0,
    copies_of: int | None = None,
) -> Case:
    """`groups`: n_group, topk_group, group_top. `bias` scales the bias and `offset` shifts it.

    With `copies_of` n, all logits are 0 and expert e has the bias of expert e % n, so that their biased scores are
    exactly equal. Equal logits other than 0 would not do: vectorised sigmoids give them scores that differ in the
    last bit, depending on their place in the array.
    """
    normal = _normal(name)
    source = np.arange(experts) % (copies_of or experts)
    n_group, topk_group, group_top = groups
    attributes = {
        "k": k,
        "n_group": n_group,
        "topk_group": topk_group,
        "group_top": group_top,
        "scoring": scoring,
        "normalize": normalize,
        "scaling": scaling,
    }
    shift = np.float32(offset)
    logits = np.zeros((tokens, experts), np.float32) if copies_of else normal(tokens, experts) * np.float32(2.0)
    inputs = {
        "logits": logits,
        "bias": (normal(experts) * np.float32(bias) + shift)[source],
    }
    return Case("MoERoute", name, inputs, attributes)


def experts_case(name: str, tokens: int, hidden: int, width: int, experts: int, k: int, low: float = 0.1) -> Case:
    """Weights lie between `low` and 1; the experts of a token are distinct, in random order."""
    normal, random = _normal(name), np.random.default_rng(_seed(name))
    inputs = {
        "x": normal(tokens, hidden),
        "ids": np.array([random.permutation(experts)[:k] for _ in range(tokens)], np.int64).reshape(tokens, k),
        "weights": random.uniform(low, 1.0, (tokens, k)).astype(np.float32),
        "gate": normal(experts, width, hidden) / np.float32(hidden**0.5),
        "up": normal(experts, width, hidden) / np.float32(hidden**0.5),
        "down": normal(experts, hidden, width) / np.float32(width**0.5),
    }
    return Case("MoEExperts", name, inputs, {})


def linear_int_case(
    name: str,
    tokens: int,
    inner: int,
    outer: int,
    bits: int,
    group: int,
    zero_points: bool = False,
    activations: str = "none",
) -> Case:
    normal, packed = _normal(name), _packed_weights(name, (outer,), inner, bits, group, zero_points)
    names = ("qweight", "scale", "zero_point")
    inputs = {"x": normal(tokens, inner), **dict(zip(names, packed, strict=False))}
    return Case("LinearInt", name, inputs, {"bits": bits, "group": group, "activations": activations})


def experts_int_case(
    name: str, tokens: int, hidden: int, width: int, experts: int, k: int, bits: int, group: int, zero_points: bool
) -> Case:
    inputs = dict(experts_case(name, tokens, hidden, width, experts, k).inputs)
    zeros: dict[str, Array] = {}
    for bank, rows, inner in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
        del inputs[bank]
        packed = _packed_weights(name + bank, (experts, rows), inner, bits, group, zero_points)
        inputs |= {bank: packed[0], f"{bank}_scale": packed[1]}
        zeros |= {f"{bank}_zero": packed[2]} if zero_points else {}
    attributes = {"bits": bits, "group": group, "activations": "none"}
    return Case("MoEExpertsInt", name, {**inputs, **zeros}, attributes)


def _packed_weights(
    name: str, rows: tuple[int, ...], inner: int, bits: int, group: int, zero_points: bool
) -> tuple[Array, ...]:
    """Random bytes as numbers, scales that make the weights of size 1/sqrt(inner), and maybe zero points."""
    random, groups = np.random.default_rng(_seed(name)), -(-inner // group)
    size = 2.0 ** (1 - bits) / inner**0.5
    numbers = random.integers(0, 256, (*rows, groups * group * bits // 8), np.uint8)
    scale = random.uniform(0.5 * size, 2 * size, (*rows, groups)).astype(np.float32)
    if not zero_points:
        return numbers, scale
    low, high = (100, 156) if bits == 8 else (0, 256)
    return numbers, scale, random.integers(low, high, (*rows, -(-groups * bits // 8))).astype(np.uint8)


def half(base: Case, dtype: str) -> Case:
    """The same call with its weights rounded to 16 bits, BF16 or F16."""
    weights = ("weight", "kv_b", "gate", "up", "down")
    inputs = {port: array.astype(NUMPY[dtype]) if port in weights else array for port, array in base.inputs.items()}
    return Case(base.op, f"{base.name}_{dtype}".lower(), inputs, base.attributes)


def linear_fp8_case(name: str, leading: Sequence[int], inner: int, outer: int) -> Case:
    weight, scale = _fp8_weights(name, (), outer, inner)
    inputs = {"x": _normal(name)(*leading, inner), "weight": weight, "scale": scale}
    return Case("LinearFp8Block", name, inputs, {"activations": "none"})


def mla_fp8_case(
    name: str,
    start: Sequence[int],
    new: int,
    capacity: int,
    dims: tuple[int, int, int, int, int] = (2, 6, 4, 5, 8),
    scale: float = 0.3,
) -> Case:
    """`mla_case` with an FP8 kv_b."""
    base = mla_case(name, start, new, capacity, dims, scale)
    inputs = {port: array for port, array in base.inputs.items() if port != "start"}
    inputs["kv_b"], inputs["kv_b_scale"] = _fp8_weights(name, (), *base.inputs["kv_b"].shape)
    attributes = {"scale": scale, "activations": "none"}
    return Case("MlaAttentionFp8Block", name, {**inputs, "start": base.inputs["start"]}, attributes)


def experts_fp8_case(name: str, tokens: int, hidden: int, width: int, experts: int, k: int) -> Case:
    inputs = dict(experts_case(name, tokens, hidden, width, experts, k).inputs)
    for bank, rows, inner in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
        del inputs[bank]
        inputs[bank], inputs[f"{bank}_scale"] = _fp8_weights(name + bank, (experts,), rows, inner)
    return Case("MoEExpertsFp8Block", name, inputs, {"activations": "none"})


def _fp8_weights(name: str, lead: tuple[int, ...], rows: int, inner: int) -> tuple[Array, Array]:
    """Random float8 e4m3 [.., rows, inner], and scales of its blocks that make the weights about 1 / sqrt(inner)."""
    random, size = np.random.default_rng(_seed(name)), inner**-0.5
    numbers = random.normal(0.0, 100.0, (*lead, rows, inner)).clip(-448, 448).astype(NUMPY["F8_E4M3"])
    scale = random.uniform(0.005 * size, 0.02 * size, (*lead, -(-rows // 128), -(-inner // 128)))
    return numbers, scale.astype(np.float32)


def _seed(name: str) -> list[int]:
    return list(name.encode())


def _normal(name: str) -> Any:
    random = np.random.default_rng(_seed(name))
    return lambda *shape: random.standard_normal(shape, dtype=np.float32)


CASES = (
    linear_case("one_by_one", (1,), 1, 1),
    linear_case("two_dims", (7,), 16, 5),
    linear_case("three_dims", (2, 3), 33, 65),
    linear_case("wide", (1, 1), 256, 300),
    latent_append_case("first_token", (0,), 1, 1, 3, 2),
    latent_append_case("ragged", (0, 5, 2), 3, 8, 4, 2),
    latent_append_case("up_to_capacity", (7, 0), 2, 9, 20, 8),
    latent_append_case("decode", (3, 3, 0, 10), 1, 11, 5, 6),
    latent_append_half_case("bf16_first_token", (0,), 1, 1, 3, 2, "BF16"),
    latent_append_half_case("bf16_ragged", (0, 5, 2), 3, 9, 40, 20, "BF16"),
    latent_append_half_case("bf16_large", (4,), 2, 9, 40, 20, "BF16", 1e37),
    latent_append_half_case("f16_ragged", (0, 5, 2), 3, 9, 40, 20, "F16"),
    latent_append_half_case("f16_saturates", (4, 1), 2, 9, 40, 20, "F16", 1e5),
    latent_append_half_case("f16_subnormal", (4,), 2, 9, 40, 20, "F16", 1e-6),
    latent_append_fp8_case("first_token", (0,), 1, 1, 3, 2, 1),
    latent_append_fp8_case("ragged", (0, 5, 2), 3, 9, 40, 20, 1),
    latent_append_fp8_case("true_dims", (7, 0), 4, 16, 512, 64, 4),
    latent_append_fp8_case("large", (4, 1), 2, 9, 256, 32, 2, 1e6),
    latent_append_fp8_case("tiny", (4, 1), 2, 9, 256, 32, 2, 1e-6),
    mla_case("first_token", (0,), 1, 1),
    mla_case("decode", (9,), 1, 16),
    mla_case("ragged_decode", (0, 30, 7), 1, 40),
    mla_case("prefill", (0,), 12, 12),
    mla_case("prefill_with_room", (0,), 12, 30),
    mla_case("ragged_prefill", (0, 5, 17), 8, 32),
    mla_case("chunk_after_many", (60,), 3, 64),
    mla_case("right_padded", (4, 0), 6, 10),
    mla_case("one_head_odd_dims", (2, 1), 3, 7, (1, 3, 2, 1, 5)),
    mla_case("value_wider_than_key", (3,), 4, 8, (3, 2, 6, 11, 4), 1.7),
    mla_case("latent_of_one", (1, 0), 2, 4, (2, 3, 2, 3, 1)),
    mla_case("true_dims_prefill", (0,), 16, 16, (4, 128, 64, 128, 512), 0.07),
    mla_case("true_dims_decode", (20, 3), 1, 24, (4, 128, 64, 128, 512), 0.07),
    route_case("v3", 9, 16, 4, (4, 2, 2)),
    route_case("v3_one_token", 1, 16, 4, (4, 2, 2)),
    route_case("v3_all_groups", 9, 8, 8, (4, 4, 2)),
    route_case("v3_one_group", 9, 8, 3),
    route_case("v3_true_shape", 5, 256, 8, (8, 4, 2)),
    route_case("v3_not_normalised", 9, 16, 4, (4, 2, 2), normalize=0),
    route_case("v3_negative_biased_scores", 33, 16, 4, (4, 2, 2), offset=-2.0),
    route_case("v3_barely_negative", 33, 16, 7, (4, 2, 2), offset=-0.6),
    route_case("v2_greedy", 9, 8, 3, scoring="softmax", normalize=0, scaling=1.0, bias=0.0),
    route_case("v2_group_limited", 9, 12, 3, (4, 2, 1), "softmax", normalize=0, scaling=16.0, bias=0.0),
    route_case("v2_group_limited_normalised", 9, 12, 3, (4, 2, 1), "softmax", scaling=1.0, bias=0.0),
    route_case("softmax_with_bias", 9, 12, 3, (4, 2, 2), "softmax", bias=0.05),
    route_case("one_expert", 4, 1, 1),
    route_case("one_of_many", 9, 8, 1),
    route_case("ties_all_equal", 5, 8, 3, (4, 2, 2), copies_of=1),
    route_case("ties_between_groups", 17, 16, 4, (4, 2, 2), copies_of=4),
    route_case("ties_within_groups", 17, 16, 4, (2, 1, 2), copies_of=3),
    route_case("ties_softmax", 17, 12, 5, (4, 2, 1), "softmax", normalize=0, bias=0.0, copies_of=6),
    experts_case("decode", 1, 16, 8, 8, 3),
    experts_case("prefill", 23, 16, 8, 8, 3),
    experts_case("one_expert", 3, 5, 7, 1, 1),
    experts_case("all_experts", 4, 6, 5, 4, 4),
    experts_case("odd_dims", 5, 33, 17, 6, 2),
    experts_case("tiny_weights", 9, 16, 8, 8, 3, low=1e-9),
    linear_int_case("int8", 3, 64, 5, 8, 32),
    linear_int_case("int8_last_group_cut", 3, 40, 5, 8, 32),
    linear_int_case("int8_zero_points", 3, 64, 5, 8, 32, True),
    linear_int_case("int4", 3, 64, 5, 4, 16),
    linear_int_case("int4_last_group_cut", 1, 50, 7, 4, 32),
    linear_int_case("int4_zero_points", 3, 64, 5, 4, 32, True),
    linear_int_case("int4_odd_number_of_zero_points", 3, 96, 5, 4, 32, True),
    mla_int_case("decode", (9,), 1, 16),
    mla_int_case("ragged_decode", (0, 30, 7), 1, 40),
    mla_int_case("ragged_prefill", (0, 5, 17), 8, 32),
    mla_int_case("true_dims_prefill", (0,), 16, 16, (4, 128, 64, 128, 512), 0.07),
    mla_int_case("true_dims_decode", (20, 3), 1, 24, (4, 128, 64, 128, 512), 0.07),
    mla_int_case("two_groups_of_heads", (7, 2), 1, 12, (21, 6, 4, 5, 8)),
    experts_int_case("int8", 7, 64, 32, 6, 2, 8, 32, False),
    experts_int_case("int8_zero_points", 7, 64, 32, 6, 2, 8, 32, True),
    experts_int_case("int4", 7, 64, 32, 6, 2, 4, 32, False),
    experts_int_case("int4_zero_points", 1, 64, 64, 6, 3, 4, 32, True),
    half(linear_case("three_dims", (2, 3), 33, 65), "BF16"),
    half(linear_case("one_by_one", (1,), 1, 1), "BF16"),
    half(linear_case("no_rows", (0,), 16, 5), "BF16"),
    half(linear_case("many_rows", (7, 3), 16, 5), "F16"),
    half(linear_case("tiles", (3,), 1024, 192), "BF16"),
    half(linear_case("uneven_tiles", (1, 1), 1000, 333), "F16"),
    half(linear_case("prime_rows", (2,), 700, 131), "BF16"),
    half(mla_case("decode", (9,), 1, 16), "BF16"),
    half(mla_case("ragged_decode", (0, 30, 7), 1, 40), "F16"),
    half(mla_case("ragged_prefill", (0, 5, 17), 8, 32), "BF16"),
    half(mla_case("one_head_odd_dims", (2, 1), 3, 7, (1, 3, 2, 1, 5)), "BF16"),
    half(mla_case("true_dims_prefill", (0,), 16, 16, (4, 128, 64, 128, 512), 0.07), "BF16"),
    half(mla_case("true_dims_decode", (20, 3), 1, 24, (4, 128, 64, 128, 512), 0.07), "BF16"),
    half(experts_case("decode", 1, 16, 8, 8, 3), "BF16"),
    half(experts_case("prefill", 23, 16, 8, 8, 3), "F16"),
    half(experts_case("one_expert", 3, 5, 7, 1, 1), "BF16"),
    half(experts_case("tiles", 2, 1024, 160, 3, 2), "BF16"),
    half(experts_case("tiles_of_many_rows", 40, 160, 1024, 3, 2), "F16"),
    linear_fp8_case("one_by_one", (1,), 1, 1),
    linear_fp8_case("whole_blocks", (2, 3), 256, 128),
    linear_fp8_case("just_below_a_block", (3,), 127, 127),
    linear_fp8_case("just_above_a_block", (3,), 129, 129),
    linear_fp8_case("cut_rows_as_kv_a", (1, 1), 256, 160),
    linear_fp8_case("cut_columns", (5,), 300, 256),
    mla_fp8_case("decode", (9,), 1, 16),
    mla_fp8_case("ragged_prefill", (0, 5, 17), 8, 32),
    mla_fp8_case("block_border_within_a_head", (3,), 2, 8, (3, 50, 4, 37, 129)),
    mla_fp8_case("true_dims_prefill", (0,), 16, 16, (4, 128, 64, 128, 512), 0.07),
    mla_fp8_case("true_dims_decode", (20, 3), 1, 24, (4, 128, 64, 128, 512), 0.07),
    experts_fp8_case("decode", 1, 128, 256, 8, 3),
    experts_fp8_case("prefill", 23, 256, 128, 8, 3),
    experts_fp8_case("around_a_block", 5, 127, 129, 4, 2),
    experts_fp8_case("one_expert", 3, 129, 5, 1, 1),
)


def cases(op: str | None = None) -> tuple[Case, ...]:
    """The table, or one op's part of it."""
    return tuple(case for case in CASES if op is None or case.op == op)
