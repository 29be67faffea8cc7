"""Where a prompt comes from: the command line, stdin, or token ids."""

from __future__ import annotations

import sys
from typing import IO

from dsv3export.errors import RequestError

# A prompt is held in memory and tokenized at once; no context window is near this size.
MAX_STDIN_BYTES = 64 << 20
MAX_ID_DIGITS = 18


def read_prompt(text: str | None, ids: str | None) -> str | list[int]:
    """The prompt given by exactly one of `text` (``-`` reads stdin) and `ids` (``1,2,3``).

    Raises:
        RequestError: None or both are given, the text is no UTF-8, stdin is empty, or the ids are no integers.
    """
    if (text is None) == (ids is None):
        got = "neither" if text is None else "both"
        raise RequestError("prompt", expected="one of --prompt and --prompt-ids", got=got)
    if ids is not None:
        return _parse_ids(ids)
    assert text is not None
    if text == "-":
        return _read_stdin()
    # Bytes of the command line that are no UTF-8 arrive as lone surrogates.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError("--prompt", expected="UTF-8 text", got="bytes that are not UTF-8")
    return text


def _parse_ids(ids: str) -> list[int]:
    parts = [part.strip() for part in ids.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) <= MAX_ID_DIGITS):
            raise RequestError("--prompt-ids", expected="token ids separated by commas, e.g. 0,12,7", got=repr(part))
    return [int(part) for part in parts]


def _read_stdin() -> str:
    stdin: IO[bytes] | None = getattr(sys.stdin, "buffer", None)
    # A process may be started without a stdin.
    data = stdin.read(MAX_STDIN_BYTES + 1) if stdin is not None else b""
    if len(data) > MAX_STDIN_BYTES:
        raise RequestError("--prompt -", expected=f"at most {MAX_STDIN_BYTES} bytes on stdin", got="more")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as bad:
        got = f"byte 0x{data[bad.start]:02x} at offset {bad.start}"
        raise RequestError("--prompt -", expected="UTF-8 text on stdin", got=got) from None
    # `echo prompt | dsv3export run ...` should not differ from `--prompt prompt`.
    text = text.removesuffix("\n")
    if not text:
        raise RequestError("--prompt -", expected="a prompt on stdin", got="nothing")
    return text
