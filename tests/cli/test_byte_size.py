"""Sizes as people write them."""

from __future__ import annotations

import click
import pytest

from dsv3export.cli.byte_size import byte_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("4GB", 4 * 10**9), ("4G", 4 * 10**9), ("4gb", 4 * 10**9), (" 4 GB ", 4 * 10**9), ("4GiB", 4 << 30),
        ("4Gi", 4 << 30), ("1.5GiB", 3 << 29), ("500MB", 500 * 10**6), ("2kB", 2000), ("2KiB", 2048), ("1TB", 10**12),
        ("0.5kB", 500), ("12B", 12),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "4XB", "-4GB", "4 bananas", "1e9", "4iB", "nan", "0", "0.1B", "4GBB", "٤GB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size"):
        byte_size(text)
