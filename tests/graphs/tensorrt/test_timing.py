"""Measurements of kernels are kept between builds, and never break one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.graphs.lower.tensorrt.timing import TimingCache


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class Config:
    """Of TensorRT's builder: takes what begins with `version`, and measures more."""

    def __init__(self, version: bytes = b"1") -> None:
        self.version, self.given = version, list[bytes]()
        self.cache: Cache | None = None

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return None if data == b"damaged" else Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.given.append(cache.data)
        if cache.data and (ignore_mismatch or not cache.data.startswith(self.version)):
            return False
        self.cache = Cache(self.version + cache.data[1:] + b"+")
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


def test_a_build_goes_on_with_what_the_last_one_measured(tmp_path: Path) -> None:
    timing = TimingCache(tmp_path / "new" / "folder" / "cache")
    for expected in (b"", b"1+", b"1++"):
        config = Config()
        timing.give(config)
        assert config.given == [expected]
        timing.take(config)
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["cache"]


@pytest.mark.parametrize("data", [b"damaged", b"2: of another version"])
def test_what_does_not_fit_is_made_anew(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    file.write_bytes(data)
    config = Config()
    TimingCache(file).give(config)
    assert config.given[-1] == b""
    TimingCache(file).take(config)
    assert file.read_bytes() == b"1+"


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    config = Config()
    timing = TimingCache(tmp_path / "file" / "cache")
    timing.give(config)
    timing.take(config)


def test_the_place_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3EXPORT_TIMING_CACHE", str(tmp_path))
    config = Config()
    timing = TimingCache.of_user("11.4")
    timing.give(config)
    timing.take(config)
    assert (tmp_path / "tensorrt-11.4.cache").read_bytes() == b"1+"
