"""dsv3.cpu::MlaAttention: the definition in float64; rows beyond a sequence never read; one result for every run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from dsv3export.plugins.linear_fp8_block.matmul import round_activations
from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.instruction_sets import instruction_sets
from tests.plugins.cpu.one_node import OneNode

pytestmark = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")

Array = NDArray[Any]
_CACHES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f8": ml_dtypes.float8_e4m3fn}
_BLOCK = 128


@dataclass(frozen=True)
class Sizes:
    H: int
    Dn: int
    Dr: int
    Dc: int
    Dv: int

    def attributes(self, weights: str, scale: float) -> dict[str, int | float | str]:
        return {**vars(self), "weights": weights, "scale": scale}


@dataclass(frozen=True)
class Case:
    """A step; `kv_b` [H, Dn+Dv, Dc] float64 is what the stored weights stand for."""

    sizes: Sizes
    weights: str
    scale: float
    stored: dict[str, Array]
    kv_b: Array
    q_nope: Array
    q_pe: Array
    cache: Array
    start: Array
    activations: str = "none"

    def node(self, folder: Path, threads: int = 2) -> OneNode:
        attributes = self.sizes.attributes(self.weights, self.scale)
        if self.weights == "fp8":
            attributes["activations"] = self.activations
        names = {"q_nope": self.q_nope, "q_pe": self.q_pe, "cache": _bits(self.cache), "start": self.start}
        return OneNode("MlaAttention", names, self.stored, attributes, folder=folder, threads=threads)

    def run(self, node: OneNode, slots: slice = slice(None), tokens: slice = slice(None)) -> Array:
        """Some slots and a stretch of the step's tokens; the rest of the cache is as the whole step left it."""
        first = tokens.indices(self.q_nope.shape[1])[0]
        inputs = {"q_nope": self.q_nope[slots, tokens], "q_pe": self.q_pe[slots, tokens]}
        inputs |= {"cache": _bits(self.cache[slots]), "start": self.start[slots] + first}
        result: Array = node(**{name: np.ascontiguousarray(array) for name, array in inputs.items()})[0]
        return result


def _bits(cache: Array) -> Array:
    return cache.view(np.int8) if cache.dtype == ml_dtypes.float8_e4m3fn else cache


def random_case(
    sizes: Sizes, weights: str, cache: str, start: list[int], tokens: int, seed: int = 0, poison: bool = True
) -> Case:
    rng = np.random.default_rng(seed)
    batch, width = len(start), sizes.Dc + sizes.Dr
    kv_b = (rng.standard_normal((sizes.H, sizes.Dn + sizes.Dv, sizes.Dc)) / np.sqrt(sizes.Dc)).astype(np.float32)
    stored, meant = _store(kv_b, sizes, weights)
    latents = rng.standard_normal((batch, max(start) + tokens + 3, width)).astype(_CACHES[cache])
    if poison:
        for slot, before in enumerate(start):
            latents[slot, before + tokens :] = np.nan
    return Case(
        sizes, weights, 0.7 / (sizes.Dn + sizes.Dr) ** 0.5, stored, meant,
        rng.standard_normal((batch, tokens, sizes.H, sizes.Dn)).astype(np.float32),
        rng.standard_normal((batch, tokens, sizes.H, sizes.Dr)).astype(np.float32),
        latents, np.asarray(start, np.int64),
    )  # fmt: skip


def _store(kv_b: Array, sizes: Sizes, weights: str) -> tuple[dict[str, Array], Array]:
    uk, uv = kv_b[:, : sizes.Dn], kv_b[:, sizes.Dn :].transpose(0, 2, 1)
    rows = kv_b.reshape(-1, sizes.Dc)
    if weights == "float":
        return {"w_uk": np.ascontiguousarray(uk), "w_uv": np.ascontiguousarray(uv)}, kv_b.astype(np.float64)
    if weights == "half":
        half = rows.astype(ml_dtypes.bfloat16)
        return {"kv_b": half}, half.astype(np.float64).reshape(kv_b.shape)
    if weights == "fp8":
        scale = np.random.default_rng(1).uniform(0.01, 0.02, [-(-n // _BLOCK) for n in rows.shape]).astype(np.float32)
        each = scale.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[: rows.shape[0], : rows.shape[1]]
        f8 = (rows / each).astype(ml_dtypes.float8_e4m3fn)
        return {"kv_b": f8, "kv_b_scale": scale}, (f8.astype(np.float64) * each).reshape(kv_b.shape)
    stored: dict[str, Array] = {}
    meant = []
    for name, matrix in (("w_uk", uk), ("w_uv", uv)):
        scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
        q = np.rint(matrix / scale).astype(np.int8)
        meant.append(q.astype(np.float64) * scale)
        for i, first in enumerate(range(0, sizes.H, 16)):
            heads = slice(first, first + 16)
            stored[f"{name}_{i}_q"] = np.concatenate(list(q[heads]), axis=1)
            stored[f"{name}_{i}_scale"] = np.concatenate(list(scale[heads]), axis=1)
    return stored, np.concatenate([meant[0], meant[1].transpose(0, 2, 1)], axis=1)


def expected(case: Case) -> NDArray[np.float64]:
    """Keys and values of each head from the latents, softmax over what each query sees (DeepSeek-V2, 2.1.2)."""
    sizes, tokens = case.sizes, case.q_nope.shape[1]
    out = np.zeros((*case.q_nope.shape[:3], sizes.Dv))
    for slot, start in enumerate(case.start):
        rows = case.cache[slot, : start + tokens].astype(np.float64)
        latents, k_pe = rows[:, : sizes.Dc], rows[:, sizes.Dc :]
        if case.activations == "1x128":
            latents = round_activations(torch.from_numpy(latents.astype(np.float32))).numpy().astype(np.float64)
        k_nope = np.einsum("tc,hnc->htn", latents, case.kv_b[:, : sizes.Dn])
        values = np.einsum("tc,hvc->htv", latents, case.kv_b[:, sizes.Dn :])
        scores = np.einsum("shn,htn->sht", case.q_nope[slot], k_nope) + np.einsum("shr,tr->sht", case.q_pe[slot], k_pe)
        seen = np.arange(start + tokens)[None, :] <= start + np.arange(tokens)[:, None]
        scores = np.where(seen[:, None], scores * case.scale, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out[slot] = np.einsum("sht,htv->shv", shares / shares.sum(-1, keepdims=True), values)
    return out.reshape(*case.q_nope.shape[:2], -1)


def error(y: Array, reference: Array) -> float:
    return float((np.linalg.norm(y - reference, axis=-1) / np.linalg.norm(reference, axis=-1)).max())


# Absorbed int8 rounds the queries and what they mixed, each row to 8 bits.
def tolerance(weights: str) -> float:
    return 2.5e-2 if weights == "int" else 2e-5


TINY = Sizes(H=3, Dn=20, Dr=6, Dc=40, Dv=12)
WIDE = Sizes(H=18, Dn=16, Dr=8, Dc=136, Dv=20)


@pytest.mark.parametrize("weights", ["int", "float", "half", "fp8"])
@pytest.mark.parametrize("cache", _CACHES)
@pytest.mark.parametrize("sizes", [TINY, WIDE], ids=["tiny", "wide"])
def test_ragged_steps_are_the_definition(tmp_path: Path, weights: str, cache: str, sizes: Sizes) -> None:
    for tokens, start in ((1, [0, 5, 300, 63]), (3, [64, 1, 130]), (70, [0, 200]), (33, [7])):
        case = random_case(sizes, weights, cache, start, tokens)
        assert error(case.run(case.node(tmp_path)), expected(case)) < tolerance(weights), (tokens, start)


@pytest.mark.parametrize("cache", _CACHES)
@pytest.mark.parametrize("sizes", [TINY, WIDE], ids=["tiny", "wide"])
def test_latents_are_rounded_as_kv_b_sees_them(tmp_path: Path, cache: str, sizes: Sizes) -> None:
    for tokens, start in ((1, [0, 5, 300, 63]), (70, [0, 200])):
        case = replace(random_case(sizes, "fp8", cache, start, tokens), activations="1x128")
        result = case.run(case.node(tmp_path))
        assert error(result, expected(case)) < tolerance("fp8"), (tokens, start)
        if cache != "f8":  # whose numbers need no rounding where the scale is a power of two
            assert error(result, expected(replace(case, activations="none"))) > 1e-3


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_all_instruction_sets_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    sizes = Sizes(*(data.draw(st.integers(1, most)) for most in (20, 40, 20, 70, 40)))
    start = data.draw(st.lists(st.integers(0, 150), min_size=1, max_size=3))
    weights, cache = data.draw(st.sampled_from(["int", "float", "half", "fp8"])), data.draw(st.sampled_from([*_CACHES]))
    case = random_case(sizes, weights, cache, start, data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99)))
    results = {}
    for isa in instruction_sets():
        monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
        results[isa] = case.run(case.node(tmp_path))
    assert np.isfinite(results["generic"]).all()
    for isa, result in results.items():
        if isa == "amx":  # keys and values are sums of products of parts of numbers there
            assert error(result, results["generic"]) < (4e-5 if weights == "int" else 2e-6)
        else:
            np.testing.assert_array_equal(result, results["generic"])


@pytest.mark.parametrize("weights", ["int", "float"])
def test_a_sequence_does_not_depend_on_the_batch_or_the_threads(tmp_path: Path, weights: str) -> None:
    for tokens, start in ((1, [0, 5, 300, 63, 520]), (40, [0, 200, 17])):
        case = random_case(WIDE, weights, "f32", start, tokens)
        whole = case.run(case.node(tmp_path, threads=2))
        np.testing.assert_array_equal(case.run(case.node(tmp_path, threads=1)), whole)
        for slot in range(len(start)):
            alone = case.run(case.node(tmp_path), slots=slice(slot, slot + 1))
            np.testing.assert_array_equal(alone[0], whole[slot])


def test_decoding_in_chunks_gives_the_same_bits(tmp_path: Path) -> None:
    """As long as both are absorbed: a long chunk is decompressed, whose roundings are others."""
    case = random_case(WIDE, "int", "f32", [600, 258], 6, poison=False)
    node = case.node(tmp_path)
    whole = case.run(node)
    for length in (1, 2, 4):
        parts = [case.run(node, tokens=slice(first, min(first + length, 6))) for first in range(0, 6, length)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.slow
def test_thirty_two_thousand_rows(tmp_path: Path) -> None:
    case = random_case(Sizes(H=16, Dn=16, Dr=8, Dc=64, Dv=16), "float", "f32", [32_700], 2)
    assert error(case.run(case.node(tmp_path)), expected(case)) < 2e-5


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    case = random_case(TINY, "float", "f32", [4], 1)
    node = case.node(tmp_path)
    with pytest.raises((Fail, RuntimeException), match="start: expected at most 7 for 1 tokens in a cache of 8, got 9"):
        node(q_nope=case.q_nope, q_pe=case.q_pe, cache=case.cache, start=np.asarray([9], np.int64))
    with pytest.raises((Fail, RuntimeException), match=r"cache: expected shape \[1, \?, 46\], got \[1, 8, 45\]"):
        node(q_nope=case.q_nope, q_pe=case.q_pe, cache=np.ascontiguousarray(case.cache[..., :-1]), start=case.start)
