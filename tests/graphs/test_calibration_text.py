"""The sequences that a calibration text gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.errors import RequestError, TokenizerError
from dsv3export.graphs.calibration_text import calibration_sequences
from dsv3export.runtime.tokenizer import Tokenizer
from tests.support.synthetic import random_checkpoint, tiny_config

WORDS = "And it came to pass in the days when the judges ruled, that there was a famine in the land. "


@pytest.fixture(scope="module")
def checkpoint(tiny_bf16: Path) -> Checkpoint:
    return Checkpoint.open(tiny_bf16)


def ids_of(text: str, checkpoint: Checkpoint) -> list[int]:
    return Tokenizer.from_directory(checkpoint.path).encode(text, add_special_tokens=False)


def text_file(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_whole_sequences_of_a_short_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = WORDS * 30
    ids = ids_of(text, checkpoint)
    sequences = calibration_sequences(text_file(tmp_path, text), checkpoint)
    assert sequences == [[0, *ids[start : start + 255]] for start in range(0, len(ids) // 255 * 255, 255)]


def test_a_long_text_is_sampled_evenly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = "".join(f"{number} {WORDS}" for number in range(1500))
    ids = ids_of(text, checkpoint)
    whole = len(ids) // 255
    assert whole > 100
    sequences = calibration_sequences(text_file(tmp_path, text), checkpoint)
    starts = [i * whole // 32 * 255 for i in range(32)]
    assert sequences == [[0, *ids[start : start + 255]] for start in starts]


def test_a_short_context_has_shorter_sequences(tiny_bf16: Path, tmp_path: Path) -> None:
    config = tiny_config(vocab_size=2048, max_position_embeddings=100)
    path = random_checkpoint(tmp_path / "checkpoint", config, seed=1, tokenizer_from=tiny_bf16)
    sequences = calibration_sequences(text_file(tmp_path, WORDS * 30), Checkpoint.open(path))
    assert {len(ids) for ids in sequences} == {100}


def test_refusals(tiny_bf16: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"text\.txt: expected a text of 255 tokens or more, got \d\d"):
        calibration_sequences(text_file(tmp_path, WORDS), checkpoint)
    small = random_checkpoint(tmp_path / "small", tiny_config(), seed=1, tokenizer_from=tiny_bf16)
    with pytest.raises(TokenizerError, match="small: expected tokens below vocab_size 97, got token"):
        calibration_sequences(text_file(tmp_path, WORDS * 30), Checkpoint.open(small))
    config = tiny_config(vocab_size=2048, bos_token_id=None)
    headless = random_checkpoint(tmp_path / "headless", config, seed=1, tokenizer_from=tiny_bf16)
    with pytest.raises(RequestError, match="bos_token_id: expected a token id to start sequences with, got none"):
        calibration_sequences(text_file(tmp_path, WORDS * 30), Checkpoint.open(headless))
