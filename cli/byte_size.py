"""Sizes as people write them: 4GB, 1.5GiB, 500MB."""

from __future__ import annotations

import math
import re

import click

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?:([KMGT]?)(I?)B?)", re.IGNORECASE)


def byte_size(text: str) -> int:
    """A number of bytes: 4GB and 4G are 4 * 10^9, 4GiB and 4Gi are 4 * 2^30; without a unit it is bytes.

    A `type` of click's options. Raises BadParameter.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise click.BadParameter(f"expected a size such as 4GB, 500MB or 1.5GiB, got {text!r}")
    unit = math.pow(1024 if match[3] else 1000, _POWERS[match[2].upper()])
    size = math.floor(float(match[1]) * unit)
    if size < 1:
        raise click.BadParameter(f"expected a size of at least one byte, got {text!r}")
    return size


def byte_size_or_none(text: str) -> int:
    """As `byte_size`, and 0 for none of it."""
    return 0 if text.strip() == "0" else byte_size(text)
