"""`dsv3export build --calibration`: bad texts, and recipes that do not go with one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.support.altered import linked_copy
from tests.support.command_line import assert_refused, run_here
from tests.support.synthetic import random_checkpoint, tiny_config

TEXT = "And it came to pass in the days when the judges ruled, that there was a famine in the land. " * 30
INT4 = ("--precision", "int4")
CALIBRATED = ("--precision", "int4", "--calibration")


@pytest.fixture(scope="module")
def places(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words in capitals stand for in a command line."""
    folder = tmp_path_factory.mktemp("calibration")
    contents = {
        "GOOD": TEXT.encode(),
        "EMPTY": b"",
        "LATIN1": b"ab\xffcd",
        "SHORT": b"And it came to pass",
        "GPTQ": b'precision = "fp32"\n[components.dense_mlp]\nformat = "int8"\nmethod = "gptq"\n',
        "RTN": b'precision = "int4"\n' + b"".join(
            f'[components.{name}]\nmethod = "rtn"\n'.encode()
            for name in ("attention", "dense_mlp", "shared_experts", "routed_experts", "head")
        ),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (linked_copy(tiny_fp8, folder / "MUTE") / "tokenizer.json").unlink()
    names = (*contents, "MUTE", "MISSING")
    return {name: str(folder / name) for name in names} | {"CHECKPOINT": str(tiny_fp8), "FOLDER": str(folder)}


BAD: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("CHECKPOINT", *CALIBRATED, ""), ("--calibration", "empty")),
    (("CHECKPOINT", *CALIBRATED, "MISSING"), ("MISSING", "expected a file, got nothing there")),
    (("CHECKPOINT", *CALIBRATED, "FOLDER"), ("expected a file, got a directory",)),
    (("CHECKPOINT", *CALIBRATED, "EMPTY"), ("EMPTY", "expected a text, got an empty file")),
    (("CHECKPOINT", *CALIBRATED, "LATIN1"), ("LATIN1", "expected UTF-8 text, got byte 0xff at offset 2")),
    (("CHECKPOINT", *CALIBRATED, "SHORT"), ("SHORT", "expected a text of 255 tokens or more, got 5")),
    (("MUTE", *CALIBRATED, "GOOD"), ("MUTE: expected tokenizer.json", "got none")),
    (("CHECKPOINT", "--calibration", "GOOD"), ("calibration: expected a recipe with an int8 or int4", "got fp32")),
    (("CHECKPOINT", "--recipe", "RTN", "--calibration", "GOOD"), ("calibration: expected a recipe with",)),
    (("CHECKPOINT", "--recipe", "GPTQ"), ("GPTQ: dense_mlp by gptq: expected a calibration text", "--calibration")),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda part: " ".join(part)[:60])
def test_bad_input(arguments: tuple[str, ...], says: tuple[str, ...], places: dict[str, str], tmp_path: Path) -> None:
    located = [places.get(word, word) for word in arguments]
    assert_refused(run_here("build", *located, "-o", tmp_path / "engine"), says, tmp_path)


def test_two_builds_give_the_same_bytes(places: dict[str, str], tiny_bf16: Path, tmp_path: Path) -> None:
    config = tiny_config(vocab_size=2048, hidden_size=128, moe_intermediate_size=128)
    checkpoint = random_checkpoint(tmp_path / "checkpoint", config, seed=1, tokenizer_from=tiny_bf16)
    weights = []
    for name in ("first", "second"):
        outcome = run_here("build", checkpoint, "-o", tmp_path / name, *CALIBRATED, places["GOOD"], "--json")
        assert (outcome.code, outcome.err) == (0, "")
        components = json.loads(outcome.out)["recipe"]["components"]
        assert components["routed_experts"]["method"] == components["head"]["method"] == "gptq"
        weights.append([path.read_bytes() for path in sorted((tmp_path / name / "weights").iterdir())])
    assert weights[0] == weights[1]
    recorded = json.loads(run_here("inspect", tmp_path / "first", "--json").out)["engine"]["calibration"]
    digest = hashlib.sha256(Path(places["GOOD"]).read_bytes()).hexdigest()
    tokens = recorded["tokens_per_sequence"]
    assert (recorded["text_sha256"], recorded["sequences"] >= 1, tokens) == (digest, True, 255)
    shown = " ".join(run_here("inspect", tmp_path / "first").out.split())
    assert f"{recorded['sequences']} sequence" in shown and f"of {tokens} tokens, text SHA-256" in shown
    plain = run_here("build", checkpoint, "-o", tmp_path / "plain", *INT4)
    assert plain.code == 0
    assert json.loads(run_here("inspect", tmp_path / "plain", "--json").out)["engine"]["calibration"] is None
    assert weights[0] != [path.read_bytes() for path in sorted((tmp_path / "plain" / "weights").iterdir())]
