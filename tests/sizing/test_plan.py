"""Plans: figures worked out by hand for DeepSeek-V3, and what must hold for any workload."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3export.config import ModelConfig
from dsv3export.errors import RequestError
from dsv3export.presets import preset
from dsv3export.recipe import CACHE_FORMATS, Recipe
from dsv3export.sizing import DEVICES, Plan, Workload, make_plan
from dsv3export.sizing.devices import device
from dsv3export.sizing.plan import RESERVE
from dsv3export.sizing.term import total
from tests.support.synthetic import tiny_config

V3 = preset("deepseek_v3")
FP8 = Recipe.for_precision("fp8")
SHORT = replace(V3, num_hidden_layers=7)  # for properties: a tenth of the tensors to count for each example


def test_deepseek_v3_on_h200() -> None:
    plan = make_plan(V3, FP8, DEVICES["h200"], Workload(batch=128, context=4096, prompt=1024))
    assert plan.cache.value == 128 * 4096 * 61 * 576 * 2
    assert plan.needed == plan.devices == 6
    assert plan.matrix_type == "fp8"
    # All but 1.7 % of the experts have a token: 642.8 GB, other weights 17.4 GB, the cache 36.8 GB.
    assert plan.decode.limit == "bandwidth"
    assert total(plan.decode.bytes) == pytest.approx(697.1e9, rel=1e-3)
    assert plan.decode.seconds == pytest.approx(697.1e9 / (6 * 4.8e12), rel=1e-3)
    assert plan.decode.tokens_per_second == pytest.approx(128 / plan.decode.seconds)
    # 2 * 36.6e9 * 128, and 2 * 128 * 61 * 128 heads * 4096 * (2 * 512 + 64)
    assert total(plan.decode.flops) == 2 * 36_625_618_432 * 128 + 2 * 128 * 61 * 128 * 4096 * 1088
    assert plan.prefill.limit == "compute"
    assert plan.prefill.seconds == pytest.approx(total(plan.prefill.flops) / (6 * 1979e12))


def test_one_token_reads_only_its_experts() -> None:
    plan = make_plan(V3, FP8, DEVICES["b200"], Workload(batch=1, context=1, prompt=1))
    (experts,) = [term for term in plan.decode.bytes if term.name == "routed experts"]
    (bank,) = [term for term in plan.weights if term.name == "routed_experts"]
    assert experts.value == pytest.approx(bank.value * 8 / 256)


def test_a_dense_model_has_no_experts() -> None:
    config = ModelConfig.from_dict(tiny_config(n_routed_experts=None))
    plan = make_plan(config, Recipe.for_precision("bf16"), DEVICES["h100"], Workload(context=16, prompt=4))
    assert [term.name for term in plan.decode.bytes] == ["weights for every token", "latent cache"]
    assert plan.matrix_type == "bf16"


workloads = st.builds(
    Workload,
    batch=st.integers(1, 4096),
    context=st.integers(1, 163_840),
    prompt=st.just(1),
    cache=st.sampled_from(CACHE_FORMATS),
)


@settings(max_examples=40, deadline=None)
@given(workload=workloads, name=st.sampled_from(list(DEVICES)))
def test_what_is_said_to_fit_fits_and_no_more(workload: Workload, name: str) -> None:
    try:
        plan = make_plan(SHORT, FP8, DEVICES[name], workload)
    except RequestError:
        return
    assert _held(plan, plan.needed) <= plan.needed * plan.usable
    assert plan.needed == 1 or _held(plan, plan.needed - 1) > (plan.needed - 1) * plan.usable
    assert plan.largest_batch >= workload.batch
    assert plan.longest_context >= workload.context
    more = replace(workload, batch=plan.largest_batch + 1)
    activations = total(plan.activations)
    cache = plan.cache.value // workload.batch * more.batch
    assert total(plan.weights) + cache > plan.devices * (plan.usable - activations)


def _held(plan: Plan, devices: int) -> int:
    return total(plan.weights) + plan.cache.value + devices * total(plan.activations)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 64), context=st.integers(2, 4096))
def test_more_work_never_takes_less_time(batch: int, context: int) -> None:
    def seconds(batch: int, context: int) -> float:
        return make_plan(SHORT, FP8, DEVICES["h200"], Workload(batch, context, 1), 8).decode.seconds

    assert seconds(batch, context) <= seconds(batch + 1, context)
    assert seconds(batch, context - 1) <= seconds(batch, context)


def test_a_device_in_the_units_of_data_sheets() -> None:
    custom = device("custom", 96, 460, 3)
    assert (custom.memory, custom.bandwidth, custom.flops["fp8"]) == (96 * 10**9, 460e9, 3e12)
    plan = make_plan(V3, Recipe.for_precision("int4"), custom, Workload(), devices=2)
    assert plan.usable == int(96e9 * (1 - RESERVE))
    assert plan.devices == 2 < plan.needed
    assert plan.largest_batch == 0
    assert plan.longest_context == 0


@pytest.mark.parametrize(
    ("workload", "says"),
    [
        (Workload(context=163_841), "163840"),
        (Workload(context=8, prompt=9), "context of 8"),
        (Workload(batch=10**9), "intermediates"),
    ],
)
def test_what_cannot_be(workload: Workload, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        make_plan(V3, FP8, DEVICES["h100"], workload)
