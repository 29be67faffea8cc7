"""Reading a text that is to be tokenized."""

from __future__ import annotations

from pathlib import Path

from dsv3export.config.json_file import read_small_file
from dsv3export.errors import RequestError

# The text is held in memory and tokenized at once.
MAX_TEXT_BYTES = 64 << 20


def read_text(path: Path) -> str:
    """The content of a file, line ends as they are. Raises RequestError if it is missing, too long, no UTF-8, empty."""
    data = read_small_file(path, RequestError, max_bytes=MAX_TEXT_BYTES)
    if not data:
        raise RequestError(str(path), expected="a text", got="an empty file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        got = f"byte 0x{data[bad.start]:02x} at offset {bad.start}"
        raise RequestError(str(path), expected="UTF-8 text", got=got) from None
