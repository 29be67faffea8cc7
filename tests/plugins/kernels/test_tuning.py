"""Tuning tables: the nearest entry, defaults, files, and the tables that the repository has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels.catalogue import PLUGINS, USES
from dsv3export.plugins.kernels.plugin import TensorType, Tile
from dsv3export.plugins.kernels.tuning import (
    DIRECTORY,
    TunedChoice,
    TunedTile,
    Tuning,
    shapes_of,
    table_path,
    tuning_for,
    write_tuning,
)

PLUGIN = PLUGINS["QuantiseActivations"]
DEVICE = "NVIDIA H100 80GB HBM3"


def entry(rows: int, tile: int, width: int = 256) -> TunedTile:
    return TunedTile(PLUGIN.name, (("BF16", (rows, width)),), (), PLUGIN.tiles[tile], 1.0, 2.0)


def types(rows: int, width: int = 256, dtype: str = "BF16") -> list[TensorType]:
    return [TensorType(dtype, (rows, width))]


def chosen(tuning: Tuning, given: list[TensorType]) -> int:
    return tuning.tile_index(PLUGIN, given, {})


def test_the_nearest_measured_shape_decides() -> None:
    tuning = Tuning(DEVICE, tiles=(entry(8, 1), entry(64, 0)))
    assert [chosen(tuning, types(rows)) for rows in (2, 8, 16, 30, 64, 200)] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("far", [types(1), types(64, 2048), types(8, dtype="F16"), [*types(8), *types(8)]])
def test_what_is_far_or_of_another_type_takes_the_default(far: list[TensorType]) -> None:
    assert chosen(Tuning(DEVICE, tiles=(entry(8, 1),)), far) == chosen(Tuning(DEVICE), far)


def test_a_tile_that_the_plugin_no_longer_has_does_not_count() -> None:
    gone = replace(entry(8, 1), tile=Tile(9999))
    assert chosen(Tuning(DEVICE, tiles=(gone,)), types(8)) == chosen(Tuning(DEVICE), types(8))


def test_attributes_that_are_work_count_and_floats_do_not() -> None:
    plugin = PLUGINS["MlaSplit"]
    use = next(use for use in USES if use.plugin == plugin.name)
    measured = TunedTile(plugin.name, shapes_of(use.inputs), (("parts", 8),), plugin.tiles[-1], 1.0, 2.0)
    tuning = Tuning(DEVICE, tiles=(measured,))
    last = len(plugin.tiles) - 1
    assert tuning.tile_index(plugin, use.inputs, {"parts": 8, "scale": 0.5}) == last
    assert tuning.tile_index(plugin, use.inputs, {"parts": 4, "scale": 0.5}) == Tuning(DEVICE).tile_index(
        plugin, use.inputs, {"parts": 4}
    )


def test_choices() -> None:
    sizes = {"slots": 128, "rows": 16, "capacity": 4096}
    tuning = Tuning(DEVICE, choices=(TunedChoice("attend", tuple(sorted(sizes.items())), 8, 1.0, 2.0),))
    assert tuning.choice("attend", sizes, 3) == 8
    assert tuning.choice("attend", sizes | {"slots": 64}, 3) == 8
    assert tuning.choice("attend", sizes | {"slots": 1}, 3) == 3
    assert tuning.choice("through_experts", sizes, 3) == 3


@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 1)), max_size=6), st.integers(1, 4096))
def test_any_table_gives_a_tile_that_is_there(rows: list[tuple[int, int]], asked: int) -> None:
    tuning = Tuning(DEVICE, tiles=tuple(entry(count, tile) for count, tile in rows))
    assert chosen(tuning, types(asked)) in range(len(PLUGIN.tiles))
    assert Tuning.from_json(json.loads(json.dumps(tuning.to_json()))).to_json() == tuning.to_json()


def test_a_file_grows_and_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    choice = TunedChoice("attend", (("slots", 1),), 8, 1.0, 2.0)
    write_tuning(Tuning(DEVICE, {"made": "first"}, (entry(8, 0), entry(64, 0)), (choice,)), tmp_path)
    path = write_tuning(Tuning(DEVICE, {"made": "second"}, (entry(8, 1),)), tmp_path)
    assert path == tmp_path / "nvidia-h100-80gb-hbm3.json" == table_path(DEVICE, tmp_path)
    table = Tuning.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert table.made == {"made": "second"}
    assert {(tuned.inputs[0][1][0], tuned.tile) for tuned in table.tiles} == {
        (8, PLUGIN.tiles[1]),
        (64, PLUGIN.tiles[0]),
    }
    assert table.choices == (choice,)
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_without_a_table_has_an_empty_one() -> None:
    assert tuning_for("Some GPU of 1999") == Tuning("Some GPU of 1999")


@pytest.mark.parametrize("document", [{}, {"format": 2}, [], {"format": 1, "device": "x", "made": {}, "tiles": [{}]}])
def test_a_damaged_table_is_an_internal_error(document: object) -> None:
    with pytest.raises(InternalError, match="tuning table is damaged"):
        Tuning.from_json(document)


def test_tables_of_the_repository_name_tiles_that_exist() -> None:
    for path in DIRECTORY.glob("*.json"):
        table = Tuning.from_json(json.loads(path.read_text(encoding="utf-8")))
        assert table_path(table.device) == path
        assert table.made
        stale = [each for each in table.tiles if each.tile not in PLUGINS[each.plugin].tiles]
        assert not stale, f"{path.name}: measure again with benchmarks/kernels.py --tune"
