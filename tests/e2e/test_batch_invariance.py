"""What native kernels promise: a token's logits are the same bits however it was computed, alone or among others.

Without `invariant`, attention has two forms, of which the length of a step decides: there, among any others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsv3export.engine.reader import EngineFiles
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.onnxruntime_device import open_device
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession

PRECISIONS = ("fp32", "bf16", "fp8", "int8", "int4")
LENGTH, CAPACITY, SLOTS = 30, 48, 8
IDS = np.random.default_rng(7).integers(3, 500, LENGTH)
Logits = NDArray[np.float32]
Open = Callable[..., OnnxRuntimeSession]

pytestmark = pytest.mark.usefixtures("native_library")
# Lengths that LENGTH tokens are computed in.
chunkings = st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=6).map(
    lambda cuts: np.diff([0, *sorted(cuts), LENGTH]).tolist()
)


@pytest.fixture(scope="module")
def open_session(engine_of: Callable[[str], Path]) -> Open:
    @cache
    def opened(precision: str, threads: int, invariant: bool = True) -> OnnxRuntimeSession:
        files = EngineFiles.open(engine_of(precision))
        return OnnxRuntimeSession(files, threads, open_device(files, "cpu", "native", invariant))

    return opened


@pytest.fixture(scope="module")
def alone(open_session: Open) -> Callable[[str], Logits]:
    """Each token computed by itself, on one thread."""
    return cache(lambda precision: in_chunks(open_session(precision, 1), [1] * LENGTH))


def in_chunks(session: OnnxRuntimeSession, chunks: Sequence[int]) -> Logits:
    latents, done, parts = LatentCache(session.cache_layout, 1, CAPACITY), 0, []
    for length in chunks:
        ids = IDS[None, done : done + length]
        parts.append(session.step(ids, np.array([done]), latents, range(1), np.arange(length)))
        done += length
    return np.concatenate(parts)


def among_others(session: OnnxRuntimeSession, chunks: Sequence[int], slot: int, seed: int) -> Logits:
    """In one of several slots; the others hold sequences of other lengths, and get as many new tokens each step."""
    random = np.random.default_rng(seed)
    latents, done, parts = LatentCache(session.cache_layout, SLOTS, CAPACITY), 0, []
    for length in chunks:
        start = random.integers(0, CAPACITY - length + 1, SLOTS)
        start[slot] = done
        ids = random.integers(3, 500, (SLOTS, length))
        ids[slot] = IDS[done : done + length]
        rows = np.arange(SLOTS * length).reshape(SLOTS, length)[slot]
        parts.append(session.step(ids, start, latents, range(SLOTS), rows))
        done += length
    return np.concatenate(parts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_chunks(precision: str, threads: int, open_session: Open, alone: Callable[[str], Logits]) -> None:
    @settings(max_examples=3)
    @given(chunkings)
    def check(chunks: list[int]) -> None:
        assert_same(in_chunks(open_session(precision, threads), chunks), alone(precision))

    for size in (1, 3, 16, LENGTH):
        whole, rest = divmod(LENGTH, size)
        chunks = [size] * whole + ([rest] if rest else [])
        assert_same(in_chunks(open_session(precision, threads), chunks), alone(precision))
    check()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_slots(precision: str, threads: int, open_session: Open, alone: Callable[[str], Logits]) -> None:
    @settings(max_examples=3)
    @given(chunkings, st.integers(0, SLOTS - 1), st.integers(0, 1 << 16))
    def check(chunks: list[int], slot: int, seed: int) -> None:
        assert_same(among_others(open_session(precision, threads), chunks, slot, seed), alone(precision))

    assert_same(among_others(open_session(precision, threads), [1] * LENGTH, 5, 0), alone(precision))
    check()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_slots_with_both_forms_of_attention(precision: str, open_session: Open) -> None:
    @settings(max_examples=3)
    @given(chunkings, st.integers(0, SLOTS - 1), st.integers(0, 1 << 16))
    def check(chunks: list[int], slot: int, seed: int) -> None:
        expected = in_chunks(open_session(precision, 1, False), chunks)
        for threads in (1, 2):
            assert_same(among_others(open_session(precision, threads, False), chunks, slot, seed), expected)

    check()


def assert_same(got: Logits, expected: Logits) -> None:
    """All bits, and a message that names the first token that differs."""
    odd = np.flatnonzero((got != expected).any(axis=1))
    assert not odd.size, f"token {odd[0]}: off by {np.abs(got - expected)[odd[0]].max():.2g}"
