"""Text to token ids and back, with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3export.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    import tokenizers

_REBUILD = "Put the checkpoint's tokenizer files in place and rebuild the engine."


class Tokenizer:
    """A byte-level BPE tokenizer.

    Args:
        backend: As read from tokenizer.json.
        bos_id: The id that starts a sequence.
        add_bos: Whether `encode` puts it there; None leaves that to tokenizer.json's own post-processor.
    """

    def __init__(self, backend: tokenizers.Tokenizer, bos_id: int | None, add_bos: bool | None) -> None:
        self._backend, self._bos_id, self._add_bos = backend, bos_id, add_bos
        # what a file says about cutting and padding is meant for training batches
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def from_directory(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json and tokenizer_config.json (if any). Raises TokenizerError."""
        import tokenizers

        path = folder / "tokenizer.json"
        data = _read(path)
        try:
            backend = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception for a file it cannot use
            raise TokenizerError(
                str(path), expected="a tokenizer of the tokenizers library", got=str(error), fix=_REBUILD
            ) from error
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            got = type(backend.decoder).__name__
            raise TokenizerError(str(path), expected="a byte-level tokenizer (decoder ByteLevel)", got=got)
        return cls(backend, *_bos_settings(folder / "tokenizer_config.json", backend))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with BOS in front where the tokenizer's settings ask for it.

        Text that starts with a written-out BOS, as rendered chat templates do, gets no second one.
        Raises RequestError for text that is not valid Unicode (lone surrogates).
        """
        try:
            ids = self._backend.encode(text, add_special_tokens=add_special_tokens and self._add_bos is None).ids
        except (UnicodeEncodeError, TypeError):
            raise RequestError("prompt", expected="valid Unicode text", got=ascii(text[:40])) from None
        if add_special_tokens and self._add_bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            return [self._bos_id, *ids]
        return list(ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it, or None for an id that stands for nothing."""
        return self._backend.id_to_token(token_id)

    def is_special(self, token_id: int) -> bool:
        """True for tokens such as BOS and EOS, which are no text."""
        return token_id in self._special


def _bos_settings(path: Path, backend: tokenizers.Tokenizer) -> tuple[int | None, bool | None]:
    """BOS id and add_bos_token of a tokenizer_config.json; (None, None) without that file. Raises TokenizerError."""
    if not path.exists():
        return None, None
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(str(path), expected="JSON", got=str(error), fix=_REBUILD) from None
    if not isinstance(config, dict):
        raise TokenizerError(str(path), expected="a JSON object", got=type(config).__name__, fix=_REBUILD)
    add_bos, bos = config.get("add_bos_token"), config.get("bos_token")
    if not (add_bos is None or isinstance(add_bos, bool)):
        raise TokenizerError(f"{path}: add_bos_token", expected="true or false", got=json.dumps(add_bos)[:60])
    text = bos.get("content") if isinstance(bos, dict) else bos
    bos_id = backend.token_to_id(text) if isinstance(text, str) else None
    if add_bos and bos_id is None:
        raise TokenizerError(
            f"{path}: bos_token", expected="a token of tokenizer.json, as add_bos_token is true", got=repr(text)
        )
    return bos_id, add_bos


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            str(path), expected="a readable file", got=error.strerror or str(error), fix=_REBUILD
        ) from error
