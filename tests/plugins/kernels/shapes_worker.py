"""Kernels at shapes that hypothesis draws, in Triton's interpreter; a process of its own, which interprets."""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3export.plugins.kernels.interpreter import interpret, start_interpreting

start_interpreting()

from dsv3export.plugins.kernels.checks import Check, run_checks  # noqa: E402
from dsv3export.plugins.latent_append.checks import append_check  # noqa: E402
from dsv3export.plugins.linear_fp8_block.checks import linear_check as fp8_check  # noqa: E402
from dsv3export.plugins.linear_int.checks import linear_check as int_check  # noqa: E402
from dsv3export.plugins.mla_attention.checks import decode_check, decode_fp8_check, prefill_check  # noqa: E402
from dsv3export.plugins.moe_experts.checks import experts_check, order_check  # noqa: E402

_TARGET = 90
drawn = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
starts = st.lists(st.integers(0, 40), min_size=1, max_size=3)


def holds(check: Check) -> None:
    failed = [outcome for outcome in run_checks([check], interpret, _TARGET, every_tile=False) if not outcome.passed]
    assert not failed, failed


@drawn
@given(
    st.integers(1, 40), st.integers(1, 300), st.integers(1, 150), st.sampled_from(["none", "1x128"]), st.integers(1, 3)
)
def fp8_linear(rows: int, inner: int, columns: int, activations: str, parts: int) -> None:
    holds(fp8_check(f"{rows} {inner} {columns}", (rows, inner, columns), activations, parts))


@drawn
@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.integers(1, 150),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64, 128]),
    st.booleans(),
    st.integers(1, 3),
)
def int_linear(rows: int, inner: int, columns: int, bits: int, group: int, zero: bool, parts: int) -> None:
    holds(int_check(f"{rows} {inner} {columns}", (rows, inner, columns), bits, group, zero, "none", parts))


@drawn
@given(starts, st.integers(1, 4), st.integers(0, 3), st.integers(1, 20), st.integers(1, 40), st.integers(1, 5))
def decode(start: list[int], queries: int, spare: int, heads: int, latent: int, parts: int) -> None:
    capacity = max(start) + queries + spare
    holds(decode_check(f"{start} {queries}", start, queries, capacity, (heads, latent, 6), parts))


@drawn
@given(starts, st.integers(1, 3), st.integers(1, 18), st.sampled_from([(16, 1), (32, 4), (64, 2)]), st.integers(1, 4))
def decode_fp8(start: list[int], queries: int, heads: int, latent: tuple[int, int], parts: int) -> None:
    width, groups = latent
    dims = (heads, width, 6, groups)
    holds(decode_fp8_check(f"{start} {queries}", start, queries, max(start) + queries, dims, parts))


@drawn
@given(starts, st.integers(1, 70), st.integers(1, 2), st.integers(1, 20), st.integers(1, 20))
def prefill(start: list[int], queries: int, heads: int, nope: int, value: int) -> None:
    holds(prefill_check(f"{start} {queries}", start, queries, max(start) + queries, (heads, nope, 4, value)))


@drawn
@given(starts, st.integers(1, 5), st.integers(1, 40), st.integers(1, 8))
def append(start: list[int], count: int, latent: int, pairs: int) -> None:
    holds(append_check(f"{start} {count}", start, count, max(start) + count, (latent, 2 * pairs)))


@drawn
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 4), st.sampled_from([16, 64]), st.booleans())
def order(tokens: int, experts: int, k: int, block: int, crowded: bool) -> None:
    holds(order_check(f"{tokens} {experts}", tokens, experts, min(k, experts), block, crowded))


@drawn
@given(
    st.sampled_from(["plain", "fp8", "rounded", "int", "int with zero points"]),
    st.integers(1, 20),
    st.integers(1, 140),
    st.integers(1, 70),
    st.integers(1, 6),
    st.integers(1, 3),
)
def experts(format_: str, tokens: int, hidden: int, width: int, count: int, k: int) -> None:
    holds(experts_check(f"{format_} {tokens} {hidden}", format_, (tokens, hidden, width, count, min(k, count))))


if __name__ == "__main__":
    for each in (fp8_linear, int_linear, decode, decode_fp8, prefill, append, order, experts):
        each()
        sys.stdout.write(f"{each.__name__}\n")
