from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.runtime.detokenize import Detokenizer, token_bytes
from dsv3export.runtime.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.finish()]


# ids beyond the vocabulary occur where a model's embedding is padded; 5..260 are mostly single bytes
@given(ids=st.lists(st.one_of(st.integers(0, 2100), st.integers(5, 260)), max_size=40))
def test_the_pieces_are_the_whole(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(pieces(tokenizer, tokenizer.encode(text))) == text


def test_a_character_comes_when_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\N{SLIGHTLY SMILING FACE}!", add_special_tokens=False)
    assert pieces(tokenizer, ids) == ["", "", "", "\N{SLIGHTLY SMILING FACE}", "!", ""]


def test_what_stays_incomplete_comes_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\N{SLIGHTLY SMILING FACE}", add_special_tokens=False)[:-1]
    assert pieces(tokenizer, ids) == ["a", "", "", "", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("token", "expected"), [("Ġthe", b" the"), ("Ċ", b"\n"), ("Ã©", "é".encode()), ("｜", "｜".encode())]
)
def test_token_bytes(token: str, expected: bytes) -> None:
    assert token_bytes(token) == expected


def test_every_byte_has_a_token_character() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(token_bytes(char) for char in ByteLevel.alphabet()) == [bytes([byte]) for byte in range(256)]
