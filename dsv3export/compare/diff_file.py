"""A comparison as a JSON file: written once, rendered wherever it is looked at."""

from __future__ import annotations

import json
from pathlib import Path

from dsv3export.compare.json_form import from_json, to_json
from dsv3export.compare.layers import LayerDiff
from dsv3export.config.json_file import read_json_object, shown
from dsv3export.errors import RequestError

KIND, VERSION = "dsv3export diff", 1
# 61 layers of some 30 values at 8,192 positions in two modes come to 0.6 GB.
_MAX_BYTES = 2 << 30


def diff_to_bytes(diff: LayerDiff) -> bytes:
    """The file's content: one line of JSON, with what it is in front."""
    value = {"kind": KIND, "version": VERSION, **to_json(diff)}
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def read_diff(path: Path) -> LayerDiff:
    """A file that `diff --json` wrote.

    Raises RequestError: it is missing, another kind of file, or of another version, or a value in it is not what it
    should be.
    """
    value = read_json_object(path, RequestError, max_bytes=_MAX_BYTES)
    if value.get("kind") != KIND:
        raise RequestError(
            str(path), expected="a file that `dsv3export diff --json` wrote of two models", got="something else"
        )
    if value.get("version") != VERSION:
        raise RequestError(f"{path}: version", expected=str(VERSION), got=shown(value.get("version")))
    diff = from_json(LayerDiff, value, str(path))
    if not diff.values:
        raise RequestError(f"{path}: values", expected="at least one", got="none")
    histogram = diff.logits.kl_histogram
    if len(histogram.counts) != len(histogram.edges) + 1 or not all(edge > 0 for edge in histogram.edges):
        raise RequestError(f"{path}: logits.kl_histogram", expected="edges above 0, and one count more", got="others")
    return diff
