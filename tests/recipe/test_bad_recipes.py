"""Each bad recipe gives one error that names the file, the key, what is allowed and what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.recipe import Recipe, RecipeError, Scheme
from dsv3export.recipe.scheme import COMPONENTS, OPTION_KEYS, OPTIONS

ATTENTION = 'precision = "int4"\n[components.attention]\n'
RANGE = 'precision = "int4"\n[[layers]]\n'
FIRST = 'precision = "int4"\n[first_layers]\n'

# The file's content, and what the message says behind the file's name.
BAD: list[tuple[str | bytes, str]] = [
    # no TOML
    (b"precision = '\xff'", "expected UTF-8 text, got byte 0xff at offset 13"),
    ("precision = ", "expected valid TOML, got Invalid value"),
    ('precision = "int4"\nprecision = "int8"', "expected valid TOML, got Cannot overwrite a value"),
    ('{"precision": "int4"}', "expected valid TOML"),
    (f"precision = {'9' * 5000}", "expected valid TOML, got Exceeds the limit"),
    (f"precision = {'[' * 5000}", "expected valid TOML, got"),
    ("#" * (1 << 20) + "\n", "expected at most 1048576 bytes, got a longer file"),
    # the base
    ("", 'precision: expected "fp32" or "bf16" or "fp8" or "int8" or "int4", got no such key'),
    ('precision = "int3"', 'precision: expected "fp32" or "bf16" or "fp8" or "int8" or "int4", got "int3"'),
    ('precision = "INT4"', 'got "INT4"'),
    ("precision = 4", "precision: expected"),
    ("precision = 2026-01-02", "precision: expected"),
    ('precision = ["int4"]', 'got ["int4"]'),
    ('precision = "int4"\ncache = "int8"', 'cache: expected "fp32" or "bf16" or "f16" or "fp8", got "int8"'),
    ('precision = "int4"\ncache = 8', "cache: expected"),
    ('precision = "int4"\n[cache]\nformat = "fp8"', "cache: expected"),
    # keys
    (
        'precision = "int4"\nformat = "int4"',
        'the key "format": expected one of precision, components, layers',
    ),
    ('precision = "int4"\n"\\n\\u001b[31m" = 1', 'the key "\\n\\u001b[31m"'),
    ('precision = "int4"\ncomponents = "int8"', 'components: expected a table, got "int8"'),
    ('precision = "int4"\n[[components]]\nformat = "int8"', "components: expected a table, got [{"),
    ('precision = "int4"\n[components.mlp]', 'the key "mlp" in components: expected one of attention, dense_mlp'),
    ('precision = "int4"\n[components]\nhead = "int8"', 'components.head: expected a table, got "int8"'),
    (ATTENTION + "groupsize = 64", 'the key "groupsize" in components.attention: expected one of format, group_size'),
    # formats
    (ATTENTION + 'format = "nf4"', 'components.attention.format: expected "fp32" or'),
    (ATTENTION + "format = 8", "components.attention.format: expected"),
    (
        'precision = "int4"\n[components.embedding]\nformat = "int8"',
        'components.embedding.format: expected "fp32" or "bf16" or "f16", got "int8"',
    ),
    # options
    (ATTENTION + "group_size = 48", "components.attention.group_size: expected 128 or 64 or 32, got 48"),
    (ATTENTION + "group_size = 128.0", "got 128.0"),
    (ATTENTION + "group_size = true", "got true"),
    (ATTENTION + "group_size = nan", "got NaN"),
    (ATTENTION + 'group_size = "channel"', 'expected 128 or 64 or 32, got "channel"'),
    (ATTENTION + 'format = "int8"\ngroup_size = 16', 'group_size: expected 128 or 64 or 32 or "channel", got 16'),
    (ATTENTION + "symmetric = 1", "components.attention.symmetric: expected true or false, got 1"),
    (ATTENTION + 'activations = "1x128"', 'components.attention.activations: expected "int8" or "none", got "1x128"'),
    (ATTENTION + 'format = "fp8"\nactivations = "int8"', 'activations: expected "none" or "1x128", got "int8"'),
    (ATTENTION + 'method = "awq"', 'components.attention.method: expected "mse" or "rtn" or "gptq", got "awq"'),
    (
        ATTENTION + 'format = "fp8"\ngroup_size = 128',
        'components.attention.group_size: expected no such key with format "fp8" (its keys: activations), got 128',
    ),
    (ATTENTION + 'format = "bf16"\nsymmetric = true', 'symmetric: expected no such key with format "bf16"'),
    (
        'precision = "bf16"\n[components.head]\nmethod = "rtn"',
        "components.head.method: expected no such key with format",
    ),
    # layers
    ('precision = "int4"\nfirst_layers = 1', "first_layers: expected a table, got 1"),
    (FIRST, "first_layers.count: expected a whole number of at least 1, got no such key"),
    (FIRST + "count = 0", "first_layers.count: expected a whole number of at least 1, got 0"),
    (FIRST + "count = 1.0", "got 1.0"),
    (FIRST + "count = true", "got true"),
    (FIRST + "count = 1", "first_layers.components: expected tables for some of attention, dense_mlp"),
    (FIRST + "count = 1\n[first_layers.components]", "first_layers.components: expected tables for some of attention"),
    (FIRST + "layers = 1", 'the key "layers" in first_layers: expected one of count, components'),
    (
        FIRST + 'count = 1\ncomponents.head.format = "bf16"',
        'the key "head" in first_layers.components: expected one of',
    ),
    (
        'precision = "int4"\n[last_layers]\ncount = 2\n[last_layers.components.attention]\ngroup_size = 1',
        "last_layers.components.attention.group_size: expected 128 or 64 or 32, got 1",
    ),
    ('precision = "int4"\nlayers = 1', "layers: expected an array of tables, got 1"),
    ('precision = "int4"\nlayers = [1]', "layers[0]: expected a table, got 1"),
    (RANGE + "start = 1", "layers[0].stop: expected a whole number of at least 2, got no such key"),
    (RANGE + "start = -1\nstop = 1", "layers[0].start: expected a whole number of at least 0, got -1"),
    (RANGE + "start = 2\nstop = 2", "layers[0].stop: expected a whole number of at least 3, got 2"),
    (RANGE + "start = 1\nstop = 2", "layers[0].components: expected tables for some of attention"),
    (RANGE + "count = 1", 'the key "count" in layers[0]: expected one of start, stop, components'),
]


@pytest.mark.parametrize(("content", "says"), BAD, ids=lambda part: repr(part[:60]))
def test_bad_recipe(content: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert says in message.removeprefix(f"{path}: ")
    assert "\n" not in message


def test_no_such_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "mix.toml") == f"{tmp_path / 'mix.toml'}: expected a file, got nothing there"
    assert refusal(tmp_path) == f"{tmp_path}: expected a file, got a directory"


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(path)
    return str(caught.value)


def test_a_manifest_that_holds_no_recipe() -> None:
    with pytest.raises(RecipeError, match=r"^engine\.json: recipe: expected a table, got null$"):
        Recipe.from_json(None, "engine.json: recipe")
    with pytest.raises(RecipeError, match=r"^engine\.json: recipe: components\.head\.group_size: expected 128"):
        Recipe.from_json({"precision": "int4", "components": {"head": {"group_size": None}}}, "engine.json: recipe")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "int2"}, "scheme: format: expected"),
        ({"format": "int4"}, "scheme: group_size: expected 128 or 64 or 32"),
        ({"format": "int8", "group_size": 16}, 'scheme: group_size: expected 128 or 64 or 32 or "channel", got 16'),
        ({"format": "bf16", "group_size": 128}, "scheme: group_size: expected no such key"),
        ({"format": "fp8", "symmetric": False}, "scheme: symmetric: expected no such key"),
        ({"format": "fp32", "method": "gptq"}, "scheme: method: expected no such key"),
        ({"format": "bf16", "activations": "1x128"}, "scheme: activations: expected no such key"),
    ],
    ids=str,
)
def test_bad_scheme(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Scheme(**arguments)


WORDS = ["precision", "components", "first_layers", "count", "format", "channel", *COMPONENTS, *OPTION_KEYS, *OPTIONS]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


def outcome(value: object) -> Recipe | str:
    """The recipe, or the message that refuses it."""
    try:
        return Recipe.from_json(value)
    except RecipeError as error:
        return str(error)


@given(value=VALUES, more=st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=3))
def test_any_json_is_a_recipe_or_one_clear_error(value: object, more: dict[str, object]) -> None:
    for result in (outcome(value), outcome({"precision": "int4"} | more)):
        if isinstance(result, str):
            assert result.startswith("recipe: ")
            assert "\n" not in result
        else:
            assert Recipe.from_json(result.to_json()) == result
