"""The files of a checkpoint, besides its weights, that go along with an engine."""

from __future__ import annotations

from pathlib import Path

from dsv3export.errors import TokenizerError

TOKENIZER_FOLDER = "tokenizer"
_CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_LEGAL_PREFIXES = ("LICENSE", "LICENCE", "NOTICE")
_MAX_BYTES = 256 << 20  # the largest tokenizer.json in use has about 20 MB


def read_carried_files(checkpoint: Path) -> dict[str, bytes]:
    """Name in the engine -> content, for each such file that the checkpoint has.

    The tokenizer goes to tokenizer/, licences and notices to the top. A checkpoint without a tokenizer is fine:
    its engine runs on token ids. Raises TokenizerError for a file that is there but cannot be read.
    """
    carried = {f"{TOKENIZER_FOLDER}/{name}": checkpoint / name for name in _CARRIED}
    for path in sorted(checkpoint.iterdir()):
        if path.name.startswith(_LEGAL_PREFIXES) and path.is_file():
            carried[path.name] = path
    return {name: _read(path) for name, path in carried.items() if path.exists() or path.is_symlink()}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(str(path), expected="a readable file", got=error.strerror or str(error)) from error
    if len(data) > _MAX_BYTES:
        raise TokenizerError(str(path), expected=f"at most {_MAX_BYTES} bytes", got="more")
    return data
