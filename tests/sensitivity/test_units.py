"""Cutting a model into units, and recipes that give each a scheme."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.presets import preset
from dsv3export.recipe import LAYER_COMPONENTS, LayerGroup, Recipe, Scheme
from dsv3export.sensitivity.units import Unit, folded, has_component, model_units, with_units

CONFIG = replace(preset("deepseek_v3"), num_hidden_layers=9, first_k_dense_replace=3)
SCHEMES = [Scheme.of("int8"), Scheme.of("int4"), Scheme.of("bf16")]


@pytest.mark.parametrize("groups", [1, 2, 4, 9, 100])
def test_every_weight_is_in_one_unit(groups: int) -> None:
    units = model_units(CONFIG, groups)
    places = [(unit.component, layer) for unit in units for layer in unit.layers]
    assert len(places) == len(set(places))
    pairs = product(LAYER_COMPONENTS, range(9))
    assert set(places) == {(component, layer) for component, layer in pairs if has_component(CONFIG, component, layer)}
    assert units[-1] == Unit("head")
    starts = [unit.layers[0] for unit in units[:-1]]
    assert starts == sorted(starts) or groups < 9


def test_names() -> None:
    units = model_units(CONFIG, 2)
    assert [unit.name for unit in units] == [
        "attention 0-3", "dense_mlp 0-2", "shared_experts 3", "routed_experts 3",
        "attention 4-8", "shared_experts 4-8", "routed_experts 4-8", "head",
    ]  # fmt: skip


@given(data=st.data(), groups=st.integers(1, 9))
def test_each_unit_has_its_scheme_before_and_after_folding(data: st.DataObject, groups: int) -> None:
    units = model_units(CONFIG, groups)
    schemes = {unit: data.draw(st.sampled_from(SCHEMES)) for unit in units}
    recipe = with_units(Recipe.for_precision("fp32"), schemes)
    short = folded(recipe, CONFIG)
    for each in (recipe, short):
        for unit, scheme in schemes.items():
            found = {each.scheme(unit.component, layer, 9) for layer in unit.layers or (None,)}
            assert found == {scheme}
    assert len(short.ranges) <= len(recipe.ranges)
    assert Recipe.from_json(short.to_json()) == short


def test_folding_knows_first_and_last_layers() -> None:
    int8, int4 = SCHEMES[:2]
    recipe = replace(Recipe.for_precision("int4"), first_layers=LayerGroup(1, {"attention": int8}))
    short = folded(recipe, CONFIG)
    assert short.first_layers is None
    assert [short.scheme("attention", layer, 9) for layer in range(9)] == [int8, *[int4] * 8]


def test_runs_that_components_share_are_one_range() -> None:
    int8, units = SCHEMES[0], model_units(CONFIG, 2)
    chosen = {unit: int8 for unit in units if 4 in unit.layers}
    recipe = with_units(Recipe.for_precision("int4"), chosen)
    assert [(each.start, each.stop, list(each.components)) for each in recipe.ranges] == [
        (4, 9, ["attention", "shared_experts", "routed_experts"])
    ]
    assert set(chain.from_iterable(each.components.values() for each in recipe.ranges)) == {int8}
