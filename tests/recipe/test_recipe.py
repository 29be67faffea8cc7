"""Recipes say what they should: presets, files, layer groups, the round trip through a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dsv3export.recipe
from dsv3export.errors import InternalError
from dsv3export.recipe import (
    CACHE_FORMATS,
    COMPONENTS,
    LAYER_COMPONENTS,
    PRECISIONS,
    Component,
    LayerGroup,
    LayerRange,
    Recipe,
    RecipeError,
    Scheme,
)
from dsv3export.recipe.scheme import FORMATS, OPTIONS
from dsv3export.recipe.toml_text import recipe_toml

INT4, INT8, BF16 = Scheme.of("int4"), Scheme.of("int8"), Scheme.of("bf16")


def from_text(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mix.toml"
    path.write_text(text)
    return Recipe.from_toml(path)


def test_defaults_of_the_integer_formats() -> None:
    assert INT8.describe() == "int8, groups of 128, symmetric, rtn, activations int8"
    assert INT4.describe() == "int4, groups of 128, symmetric, mse, activations int8"


@pytest.mark.parametrize(
    ("precision", "layers", "head", "embedding"),
    [
        ("fp32", "fp32", "fp32", "fp32"),
        ("bf16", "bf16", "bf16", "bf16"),
        ("fp8", "fp8, blocks of 128 x 128", "bf16", "bf16"),
        ("int4", INT4.describe(), INT8.describe(), "bf16"),
    ],
)
def test_presets(precision: str, layers: str, head: str, embedding: str) -> None:
    expected = [(component, "all", layers) for component in LAYER_COMPONENTS]
    expected += [("head", "all", head), ("embedding", "all", embedding)]
    recipe = Recipe.for_precision(precision)
    assert recipe.describe() == expected
    assert recipe.precision == precision


def test_the_int8_preset_has_smaller_groups_than_the_format() -> None:
    recipe = Recipe.for_precision("int8")
    fine, routed = Scheme.of("int8", {"group_size": 32}), Scheme.of("int8", {"group_size": 64})
    searched = Scheme.of("int8", {"group_size": 32, "method": "mse"})
    expected = dict.fromkeys(COMPONENTS, fine) | {"attention": searched, "routed_experts": routed, "embedding": BF16}
    assert recipe.components == expected
    methods = {scheme.method for scheme in Recipe.for_precision("int8", calibrated=True).components.values()}
    assert methods == {"gptq", BF16.method}


def test_the_example_in_the_documentation(tmp_path: Path) -> None:
    lines = (dsv3export.recipe.__doc__ or "").splitlines()
    recipe = from_text(tmp_path, "\n".join(line for line in lines if line.startswith("    ")))
    assert recipe.describe() == [
        ("attention", "3 to 4", "bf16"),
        ("attention", "others", "int8, per channel, asymmetric, rtn, activations int8"),
        ("dense_mlp", "all", INT4.describe()),
        ("shared_experts", "all", INT4.describe()),
        ("routed_experts", "first 1", INT8.describe()),
        ("routed_experts", "last 2", "int4, groups of 32, symmetric, mse, activations int8"),
        ("routed_experts", "others", INT4.describe()),
        ("head", "all", INT8.describe()),
        ("embedding", "all", "bf16"),
    ]
    assert recipe.source == str(tmp_path / "mix.toml")


def test_a_table_without_a_format_changes_the_scheme_below(tmp_path: Path) -> None:
    recipe = from_text(
        tmp_path,
        """
        precision = "int4"
        [components.routed_experts]
        group_size = 32
        symmetric = false
        [last_layers]
        count = 1
        [last_layers.components.routed_experts]
        method = "gptq"
        """,
    )
    assert recipe.scheme("routed_experts", 0, 4) == Scheme(
        "int4", 32, symmetric=False, activations="int8", method="mse"
    )
    assert recipe.scheme("routed_experts", 3, 4) == Scheme(
        "int4", 32, symmetric=False, activations="int8", method="gptq"
    )


def test_a_table_with_a_format_starts_from_its_defaults(tmp_path: Path) -> None:
    text = """
        precision = "int4"
        components.attention = { format = "int4", group_size = 32, activations = "int8" }
        first_layers.count = 1
        first_layers.components.attention = { format = "int4" }
        """
    recipe = from_text(tmp_path, text)
    assert recipe.scheme("attention", 0, 3) == INT4
    assert recipe.scheme("attention", 1, 3) == Scheme("int4", 32, activations="int8", method="mse")


def test_layer_groups() -> None:
    """Layers 0-1 are first, 2-3 last; of the overlap the first win; the MTP layer is neither."""
    fp8 = Scheme.of("fp8")
    recipe = Recipe(
        "int4",
        Recipe.for_precision("int4").components,
        LayerGroup(2, {"attention": BF16, "dense_mlp": BF16}),
        LayerGroup(3, {"attention": fp8, "routed_experts": fp8}),
    )
    assert [recipe.scheme("attention", layer, 4) for layer in range(5)] == [BF16, BF16, fp8, fp8, INT4]
    assert [recipe.scheme("dense_mlp", layer, 4) for layer in range(5)] == [BF16, BF16, INT4, INT4, INT4]
    assert [recipe.scheme("routed_experts", layer, 4) for layer in range(5)] == [INT4, fp8, fp8, fp8, INT4]
    assert [recipe.scheme("head", layer, 4) for layer in (None, 0, 4)] == [INT8, INT8, INT8]
    with pytest.raises(InternalError, match="attention belongs to a layer"):
        recipe.scheme("attention", None, 4)


def test_ranges_of_layers(tmp_path: Path) -> None:
    """A range wins over the first and the last layers, and over ranges behind it; the MTP layer is in none."""
    text = """
        precision = "int4"
        first_layers = { count = 2, components.attention.format = "fp8" }
        layers = [
          { start = 1, stop = 3, components.attention.format = "bf16" },
          { start = 0, stop = 4, components = { attention.group_size = 32, dense_mlp.format = "bf16" } },
          { start = 3, stop = 9, components.routed_experts.format = "bf16" },
        ]
        """
    recipe = from_text(tmp_path, text)
    fine, fp8 = Scheme.of("int4", {"group_size": 32}), Scheme.of("fp8")
    assert [recipe.scheme("attention", layer, 5) for layer in range(6)] == [fine, BF16, BF16, fine, INT4, INT4]
    assert [recipe.scheme("dense_mlp", layer, 5) for layer in range(6)] == [BF16] * 4 + [INT4] * 2
    assert [recipe.scheme("routed_experts", layer, 9) for layer in (2, 3, 8, 9)] == [INT4, BF16, BF16, INT4]
    assert recipe.first_layers == LayerGroup(2, {"attention": fp8})
    assert ("attention", "1 to 2", "bf16") in recipe.describe()
    assert ("attention", fine) in recipe.schemes()
    assert recipe.unrounded().scheme("attention", 0, 5).activations == "none"
    recipe.check_layers(9)
    with pytest.raises(RecipeError, match=r"layers\[2\]\.stop: expected at most the model's 8 layers, got 9"):
        recipe.check_layers(8)


def test_more_layers_than_the_model_has(tmp_path: Path) -> None:
    text = 'precision = "int4"\nlast_layers = { count = 9, components.attention = { format = "bf16" } }'
    recipe = from_text(tmp_path, text)
    recipe.check_layers(9)
    with pytest.raises(
        RecipeError, match=r"mix\.toml: last_layers\.count: expected at most the model's 8 layers, got 9"
    ):
        recipe.check_layers(8)


def test_json_spells_everything_out_in_a_fixed_order() -> None:
    ints = {"group_size": 128, "symmetric": True, "activations": "int8", "method": "mse"}
    int4, int8 = {"format": "int4"} | ints, {"format": "int8"} | ints | {"method": "rtn"}
    expected = {
        "precision": "int4",
        "cache": "fp32",
        "components": dict.fromkeys(LAYER_COMPONENTS, int4) | {"head": int8, "embedding": {"format": "bf16"}},
    }
    assert json.dumps(Recipe.for_precision("int4").to_json()) == json.dumps(expected)


@st.composite
def schemes(draw: st.DrawFn, component: Component) -> Scheme:
    """Any scheme that the component may have."""
    format = draw(st.sampled_from(FORMATS[component]))
    return Scheme.of(format, {key: draw(st.sampled_from(allowed)) for key, allowed in OPTIONS[format].items()})


SCHEMES = {component: schemes(component) for component in COMPONENTS}
GROUPS = st.builds(
    LayerGroup,
    st.integers(1, 9),
    st.fixed_dictionaries({}, optional={name: SCHEMES[name] for name in LAYER_COMPONENTS}).filter(bool),
)
RANGES = st.builds(
    lambda start, length, components: LayerRange(start, start + length, components),
    st.integers(0, 9),
    st.integers(1, 9),
    st.fixed_dictionaries({}, optional={name: SCHEMES[name] for name in LAYER_COMPONENTS}).filter(bool),
)
RECIPES = st.builds(
    Recipe,
    st.sampled_from(PRECISIONS),
    st.fixed_dictionaries(SCHEMES),
    st.none() | GROUPS,
    st.none() | GROUPS,
    st.sampled_from(CACHE_FORMATS),
    st.lists(RANGES, max_size=3).map(tuple),
)


@given(recipe=RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    text = json.dumps(recipe.to_json(), allow_nan=False)
    again = Recipe.from_json(json.loads(text), "engine.json: recipe")
    assert again == recipe
    assert json.dumps(again.to_json()) == text


@given(recipe=RECIPES)
def test_toml_round_trip(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("recipes") / "mix.toml"
    path.write_text(recipe_toml(recipe, ("a comment", "[and] = another")), encoding="utf-8")
    assert Recipe.from_toml(path) == recipe


def test_the_cache_of_a_file_and_of_a_record_that_does_not_say(tmp_path: Path) -> None:
    recipe = from_text(tmp_path, 'precision = "int4"\ncache = "fp8"\n')
    assert recipe.cache == "fp8"
    assert recipe.with_cache("bf16").cache == "bf16" and recipe.with_cache("bf16").components == recipe.components
    with pytest.raises(RecipeError, match=r'cache: expected "fp32" or .*, got "fp4"'):
        recipe.with_cache("fp4")
    old = {key: value for key, value in recipe.to_json().items() if key != "cache"}
    assert Recipe.from_json(old).cache == "fp32"


def test_what_needs_a_calibration_text() -> None:
    assert Scheme.of("int4", {"method": "gptq"}).needs_calibration
    assert not INT4.needs_calibration


def test_with_a_calibration_text_gptq_is_the_method_that_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(
        'precision = "int4"\n'
        '[components.attention]\nformat = "int8"\n'
        '[components.dense_mlp]\nmethod = "rtn"\n'
        "[components.routed_experts]\ngroup_size = 32\n"
        '[first_layers]\ncount = 1\n[first_layers.components]\ndense_mlp.symmetric = false\nattention.format = "bf16"\n'
    )
    recipe = Recipe.from_toml(path, calibrated=True)
    methods = {component: scheme.method for component, scheme in recipe.components.items()}
    expected = dict.fromkeys(COMPONENTS, "gptq") | {"dense_mlp": "rtn", "embedding": "rtn"}
    assert methods == expected
    assert recipe.first_layers is not None
    assert recipe.first_layers.components["dense_mlp"].method == "rtn"
    assert not recipe.first_layers.components["attention"].needs_calibration
    assert recipe.components["routed_experts"].group_size == 32
    assert not any(scheme.needs_calibration for scheme in Recipe.from_toml(path).components.values())
