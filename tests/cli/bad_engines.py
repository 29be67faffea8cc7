"""Ways to spoil a copy of an engine, and what the error has to name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.altered import edit_bytes, edit_json, replace_file

GRAPH = "graph/trunk.onnx"
WEIGHTS = "weights/model-00001.safetensors"


@dataclass(frozen=True)
class BadEngine:
    """`spoil` alters the folder; each text of `says` is in the one line that the program prints."""

    name: str
    spoil: Callable[[Path], object]
    says: tuple[str, ...]


def _manifest(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda engine: edit_json(engine / "engine.json", edit)


def _weight(**fields: object) -> Callable[[Path], None]:
    """An engine.json that says something else about the first weight that the engine stores."""

    def edit(manifest: Any) -> None:
        next(row for row in manifest["weights"] if row["location"] == "engine").update(fields)

    return _manifest(edit)


def _range(place: int, value: int) -> Callable[[Path], None]:
    """Another offset (place 0) or length (1) of the first weight that the engine stores."""

    def edit(manifest: Any) -> None:
        row = next(row for row in manifest["weights"] if row["location"] == "engine")
        row["pieces"][0]["ranges"][0][place] = value

    return _manifest(edit)


def _file(name: str) -> Callable[[Path], None]:
    """Another file of the first weight that the engine stores."""

    def edit(manifest: Any) -> None:
        row = next(row for row in manifest["weights"] if row["location"] == "engine")
        row["pieces"][0]["file"] = name

    return _manifest(edit)


def _move_file(manifest: Any) -> None:
    manifest["files"]["../outside"] = manifest["files"].pop(WEIGHTS)


def _flip(data: bytes) -> bytes:
    """Other bytes, the same number of them."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


BAD_ENGINES = (
    BadEngine("later format version", _manifest(lambda m: m.update(version=3)), ("engine.json", "version 2", "got 3")),
    BadEngine("earlier format version", _manifest(lambda m: m.update(version=1)), ("version 2", "got 1", "Rebuild")),
    BadEngine("no format version", _manifest(lambda m: m.pop("version")), ("engine.json", "version")),
    BadEngine("another format", _manifest(lambda m: m.update(format="zip")), ("engine.json", "dsv3export-engine")),
    BadEngine("empty manifest", lambda e: replace_file(e / "engine.json", ""), ("engine.json", "JSON")),
    BadEngine("manifest is a list", lambda e: replace_file(e / "engine.json", "[]"), ("engine.json", "object")),
    BadEngine("no weight table", _manifest(lambda m: m.pop("weights")), ("engine.json", "weights")),
    BadEngine("recipe is a number", _manifest(lambda m: m.update(recipe=1)), ("engine.json", "recipe")),
    BadEngine("another backend", _manifest(lambda m: m["backend"].update(name="tensorrt")), ("graphs", "program")),
    BadEngine("bad model config", _manifest(lambda m: m["model"].update(kv_lora_rank=0)), ("kv_lora_rank", "0")),
    BadEngine("offset beyond the file", _range(0, 2**40), ("engine.json", str(2**40))),
    BadEngine("negative offset", _range(0, -8), ("engine.json", "ranges", "-8")),
    BadEngine("size that lies", _range(1, 8), ("engine.json", "nbytes", "got 8")),
    BadEngine("weight in the header", _range(0, 4), ("engine.json", "header")),
    BadEngine("weight without pieces", _weight(pieces=[]), ("engine.json", "nbytes", "got 0")),
    BadEngine("shape that lies", _weight(shape=[2**40, 2**40]), ("engine.json",)),
    BadEngine("unknown dtype", _weight(dtype="Q7"), ("engine.json", "dtype", "Q7")),
    BadEngine("weight in no known file", _file("/etc/passwd"), ("engine.json", "/etc/passwd")),
    BadEngine("file outside", _manifest(_move_file), ("engine.json",)),
    BadEngine("missing graph", lambda e: (e / GRAPH).unlink(), (GRAPH,)),
    BadEngine("altered graph", lambda e: edit_bytes(e / GRAPH, _flip), (GRAPH, "sha256")),
    BadEngine("cut graph", lambda e: edit_bytes(e / GRAPH, lambda data: data[:-1]), (GRAPH, "size")),
    BadEngine("missing weights", lambda e: (e / WEIGHTS).unlink(), (WEIGHTS,)),
    BadEngine("altered weights", lambda e: edit_bytes(e / WEIGHTS, _flip), (WEIGHTS, "sha256")),
    BadEngine("cut weights", lambda e: edit_bytes(e / WEIGHTS, lambda data: data[:-8]), (WEIGHTS, "size")),
    BadEngine("missing tokenizer", lambda e: (e / "tokenizer/tokenizer.json").unlink(), ("tokenizer.json",)),
    BadEngine("garbled tokenizer", lambda e: edit_bytes(e / "tokenizer/tokenizer.json", _flip), ("tokenizer.json",)),
    BadEngine("no manifest", lambda e: (e / "engine.json").unlink(), ("engine.json",)),
)  # fmt: skip
