"""When steps are captured, launched and forgotten; and the numbers of cache rows that they are captured for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.runtime.cuda_driver import DeviceLostError, Driver
from dsv3export.runtime.device import Device, Stream
from dsv3export.runtime.tensorrt import graphs
from dsv3export.runtime.tensorrt.graphs import StepGraphs, rounded_length
from tests.support.emulated.driver import EmulatedDriver


class AnyContext:
    """Stands for a context that can be captured."""

    def can_be_captured(self, stream: int) -> bool:
        return True


@pytest.fixture
def stream(driver: EmulatedDriver) -> Iterator[Stream]:
    device = Device(driver=Driver(driver))  # must live as long as what is made on it
    yield device.stream()
    device.make_current()


class Steps:
    """Runs steps and notes with which contexts each was put into the stream by hand."""

    def __init__(self, stream: Stream) -> None:
        self.common: Any = {"k": AnyContext()}
        self.by_hand: list[str] = []
        self.graphs = StepGraphs(stream, self.common, lambda: {"k": AnyContext()})  # type: ignore[dict-item]

    def run(self, *key: int) -> None:
        self.graphs.run(key, lambda contexts: self.by_hand.append("common" if contexts is self.common else "own"))


def test_a_step_that_comes_back(stream: Stream, driver: EmulatedDriver) -> None:
    steps = Steps(stream)
    for _ in range(5):
        steps.run(1, 1)
    assert (steps.by_hand, steps.graphs.captured, driver.launched) == (["common", "own", "own"], 1, 3)
    steps.run(1, 2)
    assert steps.by_hand[3:] == ["common"]


def test_the_least_recently_used_is_dropped(
    stream: Stream, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_MOST", 2)
    steps = Steps(stream)
    for key in (1, 2):
        for _ in range(3):
            steps.run(1, key)
    steps.run(1, 1)
    steps.run(1, 3)
    assert driver.launched == 3
    steps.run(1, 1)
    assert driver.launched == 4
    steps.run(1, 2)
    assert driver.launched == 4


def test_a_cache_that_goes_takes_its_graphs_along(stream: Stream, driver: EmulatedDriver) -> None:
    steps = Steps(stream)
    for cache in (1, 2):
        for _ in range(3):
            steps.run(cache, 5)
    steps.graphs.forget(1)
    assert len(driver.graphs) == 1
    steps.run(2, 5)
    assert driver.launched == 3


def test_a_device_that_is_lost_in_a_capture_is_no_reason_to_go_on(stream: Stream, driver: EmulatedDriver) -> None:
    steps = Steps(stream)
    for _ in range(2):
        steps.run(1, 1)
    driver.failures["cuStreamBeginCapture"] = EmulatedDriver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceLostError):
        steps.run(1, 1)
    assert steps.graphs.why_not == ""


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 20))
def test_lengths_are_enough_and_little_more(length: int, more: int) -> None:
    capacity = length + more
    rounded = rounded_length(length, capacity)
    assert length <= rounded <= capacity
    assert rounded <= max(length + 63, length * 9 / 8)


def test_there_are_few_lengths() -> None:
    assert len({rounded_length(length, 1 << 17) for length in range(1, (1 << 17) + 1)}) < 90
