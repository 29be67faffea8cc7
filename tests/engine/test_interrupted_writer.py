"""A writer that is stopped in the middle, and the next one with the same key or another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.dtypes import NUMPY
from dsv3export.engine.journal import JOURNAL_NAME
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.staging import LOCK_NAME
from dsv3export.engine.work import Part, Stage, WorkUnit
from dsv3export.engine.writer import EngineWriter
from dsv3export.errors import InternalError, ResourceError
from dsv3export.progress import NoProgress
from tests.engine.small_engine import produce, small_manifest
from tests.support.whole_weights import whole

BANK = PlannedWeight("bank", "F32", (10, 5), (), "")
SCALES = PlannedWeight("scales", "BF16", (10,), (), "")
PLAN = [BANK, SCALES]
SHARD = "weights/model-00001.safetensors"


class Notes(NoProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def rows_of(weight: PlannedWeight, expert: int) -> NDArray[Any]:
    return np.full((1, *weight.shape[1:]), expert + 1, NUMPY[weight.dtype])


def stages(made: list[int], stop_at: int | None = None, error: BaseException | None = None) -> list[Stage]:
    """One unit for each expert; `error` is raised in place of making expert `stop_at`."""

    def make(expert: int) -> list[NDArray[Any]]:
        if expert == stop_at and error is not None:
            raise error
        made.append(expert)
        return [rows_of(weight, expert) for weight in PLAN]

    def unit(expert: int) -> WorkUnit:
        return WorkUnit(tuple(Part(weight, (expert, expert + 1)) for weight in PLAN), 1, lambda: make(expert))

    return [Stage(tuple(unit(expert) for expert in range(10)))]


def build(target: Path, source: Checkpoint, key: str, work: list[Stage], progress: Notes | None = None) -> int:
    """Bytes of weights that were there."""
    with EngineWriter(target, checkpoint=source, key=key) as writer:
        graph = writer.write_file("graph/trunk.onnx", b"a graph")
        table = writer.write_weights(PLAN, work, progress=progress or Notes())
        writer.finish(small_manifest(source, graph, table))
    return writer.resumed_bytes


@pytest.fixture
def source(tiny_fp8: Path) -> Checkpoint:
    return Checkpoint.open(tiny_fp8)


@pytest.fixture
def stopped(tmp_path: Path, source: Checkpoint) -> Path:
    """What a build to `tmp_path`/engine leaves that is stopped with seven of ten units made."""
    stop = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        build(tmp_path / "engine", source, "key", stages([], 7, stop))
    partial = tmp_path / "engine.partial"
    assert str(caught.value) == f"run the same command again to go on with {partial}"
    assert {path.name for path in partial.iterdir()} == {JOURNAL_NAME, LOCK_NAME, "weights", "graph"}
    return partial


def check(engine: Path) -> None:
    """All weights are there and nothing else is left."""
    assert sorted(path.name for path in engine.parent.iterdir()) == ["engine"]
    assert not any(path.name.startswith(".") for path in engine.iterdir())
    expected = [np.concatenate([rows_of(weight, expert) for expert in range(10)]).tobytes() for weight in PLAN]
    data = (engine / SHARD).read_bytes()
    assert data.endswith(expected[0] + expected[1])


def test_the_same_build_goes_on(stopped: Path, source: Checkpoint) -> None:
    made: list[int] = []
    resumed = build(stopped.with_name("engine"), source, "key", stages(made))
    assert (made, resumed) == ([7, 8, 9], 7 * 22)
    check(stopped.with_name("engine"))


@pytest.mark.parametrize("key", ["other", ""])
def test_another_build_starts_anew_and_says_so(stopped: Path, source: Checkpoint, key: str) -> None:
    made: list[int] = []
    notes = Notes()
    assert build(stopped.with_name("engine"), source, key, stages(made), notes) == 0
    assert made == list(range(10))
    assert notes.notes == [f"{stopped} was another build's and is cleared: this one starts anew"]
    check(stopped.with_name("engine"))


def alter(offset: int) -> Callable[[Path], None]:
    def edit(partial: Path) -> None:
        data = bytearray((partial / SHARD).read_bytes())
        data[offset] ^= 1
        (partial / SHARD).write_bytes(bytes(data))

    return edit


def cut(partial: Path) -> None:
    data = (partial / SHARD).read_bytes()
    (partial / SHARD).write_bytes(data[: len(data) - 5 - 20 - 3 * 20])


def lose(partial: Path) -> None:
    (partial / SHARD).unlink()


def forget(partial: Path) -> None:
    """The journal's last three lines are lost, and of the fourth but last a part is."""
    lines = (partial / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    (partial / JOURNAL_NAME).write_bytes(b"".join(lines[:-4]) + lines[-4][:4])


@pytest.mark.parametrize(
    ("damage", "redone"),
    [
        (alter(-1 - 20 - 9 * 20 - 4), {0}),  # in the bank's first row
        (alter(-1 - 2 * 7), {2}),  # in the scales
        (alter(3), set()),  # in the header, which is written anew
        (cut, {0, 1, 2, 3, 4, 5, 6}),
        (lose, {0, 1, 2, 3, 4, 5, 6}),
        (forget, {3, 4, 5, 6}),
    ],
    ids=["bank", "scales", "header", "cut", "lost", "journal"],
)
def test_what_is_not_as_it_was_written_is_made_again(
    stopped: Path, source: Checkpoint, damage: Callable[[Path], None], redone: set[int]
) -> None:
    damage(stopped)
    made: list[int] = []
    build(stopped.with_name("engine"), source, "key", stages(made))
    assert set(made) == {7, 8, 9} | redone
    check(stopped.with_name("engine"))


def test_a_finished_stage_is_not_prepared(tmp_path: Path, source: Checkpoint) -> None:
    prepared: list[str] = []

    def two(made: list[int], stop_at: int | None, error: BaseException | None) -> list[Stage]:
        units = stages(made, stop_at, error)[0].units
        return [
            Stage(units[:5], lambda: prepared.append("first")),
            Stage(units[5:], lambda: prepared.append("second")),
        ]

    with pytest.raises(SystemExit):
        build(tmp_path / "engine", source, "key", two([], 7, SystemExit()))
    assert prepared == ["first", "second"]
    build(tmp_path / "engine", source, "key", two([], None, None))
    assert prepared == ["first", "second", "second"]
    check(tmp_path / "engine")


def test_an_error_leaves_nothing_even_of_a_build_that_went_on(stopped: Path, source: Checkpoint) -> None:
    with pytest.raises(ResourceError):
        build(stopped.with_name("engine"), source, "key", stages([], 9, ResourceError("no more paper")))
    assert list(stopped.parent.iterdir()) == []


def test_a_build_without_a_key_leaves_nothing(tmp_path: Path, source: Checkpoint) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "engine", source, "", stages([], 7, KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_units_make_the_whole_plan(tmp_path: Path, source: Checkpoint) -> None:
    missing = [Stage(stages([])[0].units[:9])]
    for work in (missing, stages([]) + missing, whole([*PLAN, PlannedWeight("w", "U8", (1,), (), "")], produce)):
        with pytest.raises(InternalError, match=r"the units make .* planned"):
            build(tmp_path / "engine", source, "key", work)
    assert list(tmp_path.iterdir()) == []
