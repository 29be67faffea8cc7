from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path: Path, tiny_fp8: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_fp8 / name, tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_agrees_with_transformers(tokenizer: Tokenizer, goldens: Callable[[str], Path]) -> None:
    cases = json.loads((goldens("fp8") / "goldens.json").read_text())["tokenizer_cases"]
    assert len(cases) == 8
    for case in cases:
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert tokenizer.encode(case["text"]) == case["ids_with_special"]
        assert tokenizer.decode(case["ids_with_special"]) == case["text"]


def test_a_written_out_bos_is_not_doubled(tokenizer: Tokenizer, goldens: Callable[[str], Path]) -> None:
    prompts = json.loads((goldens("fp8") / "goldens.json").read_text())["prompts"]
    (chat,) = [prompt for prompt in prompts if prompt["kind"] == "chat"]
    assert tokenizer.encode(chat["rendered"]) == chat["ids"]


@pytest.mark.parametrize("adds_itself", [True, False])
@pytest.mark.parametrize(("setting", "bos"), [(True, True), (False, False), (None, None)])
def test_bos_follows_the_setting(folder: Path, adds_itself: bool, setting: bool | None, bos: bool | None) -> None:
    """add_bos_token decides; without it, the post-processor does. DeepSeek's own tokenizer.json does not add it."""
    edit(folder / "tokenizer_config.json", add_bos_token=setting)
    if not adds_itself:
        edit(folder / "tokenizer.json", post_processor=None)
    ids = Tokenizer.from_directory(folder).encode("LORD's")
    assert ids == ([0] if (adds_itself if bos is None else bos) else []) + [48, 345, 506]


def test_settings_for_training_batches_are_ignored(folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=truncation)
    assert len(Tokenizer.from_directory(folder).encode("a long prompt of many words")) > 5


def test_works_without_a_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.from_directory(folder).encode("LORD's") == [0, 48, 345, 506]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, "tokenizer.json: expected a readable file, got No such file"),
        ("tokenizer.json", b"", "expected a tokenizer"),
        ("tokenizer.json", b"\xff\x00", "expected a tokenizer"),
        ("tokenizer.json", b'{"model": 3}', "expected a tokenizer"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json: expected JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json: expected JSON"),
        ("tokenizer_config.json", b"[]", "expected a JSON object, got list"),
        ("tokenizer_config.json", b'{"add_bos_token": 1}', "add_bos_token: expected true or false, got 1"),
        ("tokenizer_config.json", b'{"add_bos_token": true}', "bos_token: expected a token"),
        ("tokenizer_config.json", b'{"add_bos_token": true, "bos_token": "<nope>"}', "got '<nope>'"),
    ],
)
def test_bad_files_are_refused(folder: Path, name: str, content: bytes | None, said: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=said) as caught:
        Tokenizer.from_directory(folder)
    assert "\n" not in str(caught.value)


def test_another_kind_of_tokenizer_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer.json", decoder={"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"})
    with pytest.raises(TokenizerError, match="byte-level"):
        Tokenizer.from_directory(folder)


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="valid Unicode"):
        tokenizer.encode("undecodable \udc80 argument")
