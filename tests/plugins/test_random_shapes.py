"""The ops whose shapes have the most corners, at random shapes: torch, generic ONNX and ONNX Runtime's own form."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.plugins import OPS
from tests.plugins.cases import Case, mla_case, route_case
from tests.plugins.onnx_function import generic_text, lowered_text, packed_inputs, run_function
from tests.plugins.test_onnx_functions import check
from tests.plugins.test_torch_ops import call


def check_all_forms(case: Case) -> None:
    check(case, [tensor.numpy() for tensor in call(case)])
    check(case, run_function(OPS[case.op], generic_text(case), case.inputs))
    check(case, run_function(OPS[case.op], lowered_text(case), packed_inputs(case)))


@st.composite
def attention_cases(draw: st.DrawFn) -> Case:
    small = st.integers(1, 9)
    dims = (draw(st.integers(1, 4)), draw(small), 2 * draw(st.integers(1, 4)), draw(small), draw(small))
    start = draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    new = draw(small)
    capacity = max(start) + new + draw(st.integers(0, 5))
    name = f"random_{start}_{new}_{capacity}_{dims}"
    return mla_case(name, start, new, capacity, dims, draw(st.sampled_from([0.0625, 0.5, 2.0])))


@st.composite
def routing_cases(draw: st.DrawFn) -> Case:
    n_group, size = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    topk_group = draw(st.integers(1, n_group))
    group_top = draw(st.sampled_from([1, 2]))
    copies_of = draw(st.sampled_from([None, 1, 2, 3]))
    return route_case(
        f"random_{draw(st.integers(0, 10**6))}",
        tokens=draw(st.integers(1, 9)),
        experts=n_group * size,
        k=draw(st.integers(1, topk_group * size)),
        groups=(n_group, topk_group, group_top),
        scoring=draw(st.sampled_from(["sigmoid", "softmax"])),
        normalize=draw(st.sampled_from([0, 1])),
        scaling=draw(st.sampled_from([1.0, 2.5, 16.0])),
        bias=draw(st.sampled_from([0.0, 0.3])),
        offset=draw(st.sampled_from([0.0, -0.5, -3.0, 3.0])),
        copies_of=copies_of,
    )


@settings(max_examples=40)
@given(attention_cases())
def test_attention(case: Case) -> None:
    check_all_forms(case)


@settings(max_examples=60)
@given(routing_cases())
def test_routing(case: Case) -> None:
    check_all_forms(case)
