"""`dsv3export eval`: the goldens' figures, comparisons, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export.graphs.build import build_engine
from tests.support.altered import edit_json, linked_copy
from tests.support.command_line import Outcome, assert_refused, run_here


@pytest.fixture(scope="module")
def places(tiny_engine: Path, tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the words in capitals stand for in a command line."""
    folder = tmp_path_factory.mktemp("eval")
    contents = {"SHORT": b"And it came to pass", "EMPTY": b"", "LATIN1": b"ab\xffcd"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    mute = linked_copy(tiny_fp8, folder / "MUTE")
    (mute / "tokenizer.json").unlink()
    build_engine(mute, folder / "MUTE_ENGINE")
    # Reads capitals as small letters: other tokens for the same text.
    strange = linked_copy(tiny_fp8, folder / "STRANGE")
    edit_json(strange / "tokenizer.json", lambda tokenizer: tokenizer.update(normalizer={"type": "Lowercase"}))
    unlike = linked_copy(tiny_fp8, folder / "UNLIKE")
    edit_json(unlike / "config.json", lambda config: config.update(bos_token_id=5))
    build_engine(tiny_fp8, folder / "SLICE", layers="1:3")
    names = (*contents, "SLICE", "MUTE", "MUTE_ENGINE", "STRANGE", "UNLIKE", "MISSING")
    return {name: folder / name for name in names} | {"ENGINE": tiny_engine, "CHECKPOINT": tiny_fp8, "FOLDER": folder}


def evaluated(places: dict[str, Path], *arguments: str | Path) -> Outcome:
    return run_here("eval", *(places.get(str(argument), argument) for argument in arguments))


def figures(places: dict[str, Path], *arguments: str | Path) -> Any:
    outcome = evaluated(places, *arguments, "--json")
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    return json.loads(outcome.out)


def test_golden(places: dict[str, Path], goldens: Callable[[str], Path]) -> None:
    text = goldens("fp8").parent / "heldout.txt"
    expected = json.loads((goldens("fp8") / "ppl.json").read_text(encoding="utf-8"))["chunk_255"]
    facts = figures(places, "ENGINE", "--text", text, "--threads", "1")
    assert facts["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert facts["nll"] == pytest.approx(expected["nll_sum"], rel=1e-6)
    assert facts["nll_mean"] == pytest.approx(expected["nll_mean"], rel=1e-6)
    assert facts["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    assert (facts["tokens"], facts["chunk_tokens"]) == (expected["n_tokens"], 255)
    assert (facts["engine"], facts["text"]) == (str(places["ENGINE"]), str(text))


@pytest.mark.parametrize("other", ["CHECKPOINT", "MUTE", "MUTE_ENGINE", "ENGINE"])
def test_against_its_own_checkpoint(places: dict[str, Path], other: str) -> None:
    """What OTHER lacks is a tokenizer, at most: the text is read with the engine's."""
    facts = figures(places, "ENGINE", "--text", "SHORT", "--against", other, "--chunk-tokens", "3")
    against = facts["against"]
    assert against["engine"] == str(places[other])
    assert against["kl_mean"] <= against["kl_max"] < 1e-9
    assert against["top1_agreement"] == 1.0
    assert against["perplexity_ratio"] == pytest.approx(1.0, rel=1e-6)
    assert against["perplexity"] == pytest.approx(facts["perplexity"], rel=1e-6)


def test_a_checkpoint_is_evaluated_by_the_executor(places: dict[str, Path]) -> None:
    executor, engine = (figures(places, one, "--text", "SHORT") for one in ("CHECKPOINT", "ENGINE"))
    assert executor["nll"] == pytest.approx(engine["nll"], rel=1e-6)


def test_for_people(places: dict[str, Path]) -> None:
    outcome = evaluated(places, "ENGINE", "--text", "SHORT", "--against", "ENGINE")
    facts = figures(places, "ENGINE", "--text", "SHORT")
    assert (outcome.code, outcome.err) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert f"perplexity {facts['perplexity']:.4f}" in lines
    assert f"text {places['SHORT']}: {facts['tokens']} tokens in chunks of 255" in lines
    divergence = "KL divergence 0.000e+00 +- 0.0e+00 nats per token, 99 % below 0.00e+00, max 0.00e+00"
    assert divergence in lines
    assert "perplexity ratio 1.000000 +- 0.000000" in lines
    assert "top-1 agreement 100.00% +- 0.00%" in lines


def test_a_single_token_has_no_error(places: dict[str, Path]) -> None:
    (places["FOLDER"] / "one").write_bytes(b"A")
    against = figures(places, "ENGINE", "--text", places["FOLDER"] / "one", "--against", "ENGINE")["against"]
    assert [against[key] for key in ("perplexity_ratio_error", "kl_error", "top1_error")] == [None, None, None]
    assert against["kl_p99"] == against["kl_max"]


BAD: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("ENGINE",), ("--text",)),
    (("ENGINE", "--text", ""), ("--text", "empty")),
    (("ENGINE", "--text", "MISSING"), ("MISSING", "expected a file, got nothing there")),
    (("ENGINE", "--text", "FOLDER"), ("expected a file, got a directory",)),
    (("ENGINE", "--text", "/dev/null"), ("/dev/null", "expected a file, got a device")),
    (("ENGINE", "--text", "EMPTY"), ("EMPTY", "expected a text, got an empty file")),
    (("ENGINE", "--text", "LATIN1"), ("LATIN1", "expected UTF-8 text, got byte 0xff at offset 2")),
    (("ENGINE", "--text", "SHORT", "--chunk-tokens", "0"), ("chunk tokens: expected 1 to 1023", "got 0")),
    (("ENGINE", "--text", "SHORT", "--chunk-tokens", "-5"), ("chunk tokens", "got -5")),
    (("ENGINE", "--text", "SHORT", "--chunk-tokens", "1024"), ("max_position_embeddings, 1024", "got 1024")),
    (("ENGINE", "--text", "SHORT", "--chunk-tokens", "9" * 30), ("chunk tokens", "got 999")),
    (("ENGINE", "--text", "SHORT", "--chunk-tokens", "all"), ("--chunk-tokens", "all")),
    (("ENGINE", "--text", "SHORT", "--threads", "0"), ("threads: expected at least 1, got 0",)),
    (("MISSING", "--text", "SHORT"), ("MISSING", "got nothing there")),
    (("deepseek-v3", "--text", "SHORT"), ("deepseek-v3: expected an engine or a checkpoint, got a preset",)),
    (("CHECKPOINT/config.json", "--text", "SHORT"), ("expected an engine or a checkpoint, got a config",)),
    (("FOLDER", "--text", "SHORT"), ("config.json",)),
    (("MUTE_ENGINE", "--text", "SHORT"), ("MUTE_ENGINE: expected a tokenizer, got none", "tokenizer.json")),
    (("MUTE", "--text", "SHORT"), ("MUTE: expected a tokenizer, got none",)),
    (("ENGINE", "--text", "SHORT", "--against", ""), ("--against", "empty")),
    (("ENGINE", "--text", "SHORT", "--against", "MISSING"), ("MISSING", "got nothing there")),
    (("ENGINE", "--text", "SHORT", "--against", "STRANGE"), ("STRANGE: vocabularies", "token 0 differs")),
    (("SLICE", "--text", "SHORT", "--against", "CHECKPOINT"), ("layers: expected 1 2, got all",)),
    (("ENGINE", "--text", "SHORT", "--against", "SLICE"), ("layers: expected all, got 1 2",)),
    (("ENGINE", "--text", "SHORT", "--against", "UNLIKE"), ("vocabularies: expected two with one bos_token_id",)),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=lambda part: " ".join(part)[:60])
def test_bad_input(arguments: tuple[str, ...], says: tuple[str, ...], places: dict[str, Path], tmp_path: Path) -> None:
    located = [str(places["CHECKPOINT"] / "config.json") if "/config" in word else word for word in arguments]
    assert_refused(evaluated(places, *located), says, tmp_path)
