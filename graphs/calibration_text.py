"""The sequences of token ids that a calibration text gives, and what an engine remembers of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.manifest import CalibrationRecord
from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.text_file import read_text
from dsv3export.runtime.tokenizer import Tokenizer

CHUNK_TOKENS = 255
# 8,000 tokens: on the trained model more of them change nothing that can be measured.
MAX_CHUNKS = 32


def calibration_sequences(path: Path, checkpoint: Checkpoint) -> list[list[int]]:
    """BOS and 255 tokens each (fewer in a model of a shorter context), 32 at most, spread over the text.

    Raises:
        RequestError: The file is missing, no UTF-8 text, too large, or has less than one sequence.
        TokenizerError: The checkpoint has no tokenizer, or one that does not fit its model.
    """
    text = read_text(path)
    config = checkpoint.config
    if config.bos_token_id is None:
        raise RequestError("config.json: bos_token_id", expected="a token id to start sequences with", got="none")
    ids = _tokenizer(checkpoint).encode(text, add_special_tokens=False)
    if ids and max(ids) >= config.vocab_size:
        got = f"token {max(ids)}"
        raise TokenizerError(str(checkpoint.path), expected=f"tokens below vocab_size {config.vocab_size}", got=got)
    size = min(CHUNK_TOKENS, config.max_position_embeddings - 1)
    whole = len(ids) // size
    if not whole:
        raise RequestError(str(path), expected=f"a text of {size} tokens or more", got=str(len(ids)))
    count = min(whole, MAX_CHUNKS)
    starts = [i * whole // count * size for i in range(count)]
    return [[config.bos_token_id, *ids[start : start + size]] for start in starts]


def calibration_record(path: Path, sequences: Sequence[Sequence[int]]) -> CalibrationRecord:
    """What an engine remembers of the text at `path` and of what `calibration_sequences` made of it."""
    digest = hashlib.sha256(read_text(path).encode("utf-8")).hexdigest()
    return CalibrationRecord(digest, len(sequences), len(sequences[0]) - 1)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if not (checkpoint.path / "tokenizer.json").exists():
        raise TokenizerError(
            str(checkpoint.path), expected="tokenizer.json, to read the calibration text with", got="none",
            fix="Put the tokenizer's files into the checkpoint.",
        )  # fmt: skip
    return Tokenizer.from_directory(checkpoint.path)
