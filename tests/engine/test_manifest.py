from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.manifest import CalibrationRecord, Manifest
from dsv3export.engine.typed_json import parse_json
from dsv3export.errors import EngineError


@pytest.fixture(scope="module")
def text(built: Path) -> str:
    return (built / "engine" / "engine.json").read_text()


def parse(document: object) -> Manifest:
    return Manifest.from_json(parse_json(json.dumps(document).encode(), "engine.json"))


def test_survives_writing_and_reading(text: str) -> None:
    manifest = parse(json.loads(text))
    assert manifest.to_json() == text
    assert parse(json.loads(manifest.to_json())) == manifest


def test_the_text_does_not_depend_on_the_order_of_tables(text: str) -> None:
    manifest = parse(json.loads(text))
    files = dict(reversed(manifest.files.items()))
    model = dict(reversed(manifest.model.items()))
    assert dataclasses.replace(manifest, files=files, model=model).to_json() == text


def test_it_says_what_the_design_says(text: str) -> None:
    document = json.loads(text)
    assert (document["format"], document["version"]) == ("dsv3export-engine", 2)
    assert document["checkpoint"]["fingerprint"].keys() == {"config_sha256", "files"}
    by_name = {entry["name"]: entry for entry in document["weights"]}
    assert list(by_name) == ["bytes", "norm", "matrix", "scalar", "bank"]
    (run,) = by_name["norm"]["pieces"]
    assert by_name["norm"]["location"] == "checkpoint" and run["file"].startswith("model-0000")
    assert by_name["bank"]["sources"] == ["model.layers.2.mlp.experts.{0..3}.up_proj.weight"]
    assert [len(run["ranges"]) for run in by_name["bank"]["pieces"]] == [4]
    assert by_name["bytes"]["sources"] == ["a", "b"] and by_name["bytes"]["transform"] == "packed"


def calibration(digest: str = "0" * 64, sequences: object = 2, tokens: object = 255) -> dict[str, object]:
    return {"text_sha256": digest, "sequences": sequences, "tokens_per_sequence": tokens}


def test_the_calibration_text_is_remembered(text: str) -> None:
    manifest = parse({**json.loads(text), "calibration": calibration("0a" * 32)})
    assert manifest.calibration == CalibrationRecord("0a" * 32, 2, 255)
    assert parse(json.loads(manifest.to_json())) == manifest
    assert parse(json.loads(text)).calibration is None


PATHS: list[tuple[list[str | int], Any, str]] = [
    (["format"], "onnx", 'expected "format": "dsv3export-engine", got "onnx"'),
    (["version"], 1, "expected engine format version 2, got 1. Rebuild"),
    (["version"], "2", 'expected engine format version 2, got "2"'),
    (["version"], True, "expected engine format version 2, got true"),
    (["producer"], None, "producer: expected a string, got null"),
    (["model"], [], r"model: expected an object, got \[\]"),
    (["recipe", "precision"], 32, 'recipe: precision: expected "fp32" or .*got 32'),
    (["backend", "opset"], 0, "backend.opset: expected an integer from 1"),
    (["backend", "name"], 1, "backend.name: expected a string, got 1"),
    (["backend", "providers"], ["cpu", "tpu"], r"providers\[1\]: expected 'cpu' or 'cuda' or 'migraphx' or 'cann'"),
    (["backend", "providers"], [], r"backend.providers: expected one or more of cpu, cuda"),
    (["backend", "compute"], "f64", "backend.compute: expected 'fp32' or 'bf16' or 'f16'"),
    (["graphs"], 1, "graphs: expected an object, got 1"),
    (["graphs", "trunk", "sha256"], "abc", "graphs.trunk.sha256: expected 64"),
    (["graphs", "trunk", "size"], -1, "graphs.trunk.size: expected an integer"),
    (["checkpoint", "path"], 7, "checkpoint.path: expected a string"),
    (["checkpoint", "fingerprint", "config_sha256"], "", "config_sha256: expected 64"),
    (["checkpoint", "mtimes_ns"], [], "mtimes_ns: expected an object"),
    (["weights"], {}, "weights: expected an array"),
    (["weights", 0, "shape"], [1.5], r"weights\[0\].shape\[0\]: expected an integer"),
    (["weights", 0, "shape"], [1] * 9, r"weights\[0\].shape: expected at most 8 dimensions"),
    (["calibration"], [], r"calibration: expected an object, got \[\]"),
    (["calibration"], {"text_sha256": "0" * 64}, "calibration: expected the key 'sequences'"),
    (["calibration"], calibration("x" * 64), "calibration.text_sha256: expected 64 lower-case"),
    (["calibration"], calibration(sequences=0), "calibration.sequences: expected an integer from 1"),
    (["calibration"], calibration(tokens=True), "calibration.tokens_per_sequence: expected an integer from 1"),
    (["layers"], [], r"layers: expected null, or the numbers of layers in ascending order, got \[\]"),
    (["layers"], [1, 1], r"layers: expected null, or the numbers"),
    (["layers"], [2, 1], r"layers: expected null, or the numbers"),
    (["layers"], [-1], r"layers\[0\]: expected an integer from 0"),
    (["layers"], "1:3", r"layers: expected an array"),
    (["weights", 0, "shape"], 15, r"weights\[0\].shape: expected an array, got 15"),
    (["weights", 1, "pieces"], {}, r"weights\[1\].pieces: expected an array"),
    (["weights", 1, "pieces", 0, "file"], 1, r"weights\[1\].pieces\[0\].file: expected a string"),
    (["weights", 1, "pieces", 0, "ranges"], 1, r"pieces\[0\].ranges: expected an array"),
    (["weights", 1, "pieces", 0, "ranges", 0], [1e3, 512], r"ranges\[0\]\[0\]: expected an integer"),
    (["weights", 1, "pieces", 0, "ranges", 0], [True, 512], r"ranges\[0\]\[0\]: expected an integer"),
    (["weights", 1, "pieces", 0, "ranges", 0], [0, -1], r"ranges\[0\]\[1\]: expected an integer"),
    (["weights", 1, "pieces", 0, "ranges", 0], [0, 2**63], r"ranges\[0\]\[1\]: expected an integer"),
    (
        ["weights", 1, "pieces", 0, "ranges", 0],
        [0, 512, 0, 8],
        r"ranges\[0\]: expected offset and length in bytes, and",
    ),
    (
        ["weights", 1, "pieces", 0, "ranges", 0],
        [0, 512, 7, 8],
        r"ranges\[0\]: expected offset and length in bytes, and",
    ),
    (
        ["weights", 1, "pieces", 0, "ranges", 0],
        [0, 512, 8, 4],
        r"ranges\[0\]: expected offset and length in bytes, and",
    ),
    (["weights", 1, "pieces", 0, "ranges", 0], [0, 0, 8, 8], r"ranges\[0\]: expected offset and length in bytes, an"),
    (["weights", 1, "pieces", 0, "ranges", 0], [0, 1, 2], r"ranges\[0\]: expected offset and length in bytes"),
    (["weights", 0, "location"], "elsewhere", "location: expected 'engine' or 'checkpoint'"),
    (["weights", 0, "sources"], "a", "sources: expected an array"),
    (["weights", 0, "extra"], 1, "expected only the keys"),
    (["files", "weights/BY_REFERENCE", "size"], None, "size: expected an integer"),
    (["surplus"], 1, "expected only the keys format, version"),
]


@pytest.mark.parametrize(("path", "value", "said"), PATHS)
def test_values_of_another_kind_are_refused(text: str, path: list[str | int], value: Any, said: str) -> None:
    document = json.loads(text)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(EngineError, match=said) as caught:
        parse(document)
    assert "\n" not in str(caught.value)


def test_every_key_is_needed(text: str) -> None:
    for key in json.loads(text):
        document = json.loads(text)
        del document[key]
        with pytest.raises(EngineError, match=key):
            parse(document)
