"""Token ids to text, one token at a time."""

from __future__ import annotations

import codecs

from dsv3export.runtime.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of token ids into pieces of text whose concatenation is what decoding all ids at once gives.

    A character may span tokens: its bytes are held back until it is whole. Special tokens are no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The characters that this token completes."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(token_bytes(self._tokenizer.token(token_id) or ""))

    def finish(self) -> str:
        """At the end: what was held back, as U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def token_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for.

    A token with a character outside the byte alphabet is literal text (an added token), as in the decoder of the
    tokenizers library.
    """
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the other bytes for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
