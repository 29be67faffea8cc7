"""A golden as a file: safetensors, with the document as JSON in the header's metadata.

Any program that reads safetensors reads the arrays. A golden that somebody else made may lie: everything is checked
before it is used, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.checkpoint.header import read_header
from dsv3export.compare.json_form import from_json, to_json
from dsv3export.config.json_file import parse_json_object, shown
from dsv3export.dtypes import NUMPY
from dsv3export.errors import InternalError, RequestError
from dsv3export.golden.document import (
    DETAILS,
    DIGESTS,
    FORMAT,
    VERSION,
    Document,
    Profile,
    Settings,
)
from dsv3export.golden.results import METRICS

Array = NDArray[Any]
_METADATA = "golden"
_MOST_TOKENS = 1 << 26
_MOST_WIDTH = 1 << 24
_ALIGNMENT = 8


@dataclass(frozen=True)
class Golden:
    """A golden in memory; `arrays` are as `Document.arrays` says."""

    document: Document
    arrays: Mapping[str, Array]

    def with_profile(self, profile: Profile) -> Golden:
        """The same with that profile, in the place of one of its name."""
        others = [each for each in self.document.profiles if each.name != profile.name]
        profiles = tuple(sorted((*others, profile), key=lambda each: each.name))
        return Golden(replace(self.document, profiles=profiles), self.arrays)

    def to_bytes(self) -> bytes:
        """The file. Equal goldens give equal bytes."""
        data = [self._data(name, dtype, shape) for name, (dtype, shape) in self.document.arrays().items()]
        document = replace(self.document, data_sha256=_digest(data))
        text = json.dumps(to_json(document), ensure_ascii=False, allow_nan=False)
        header: dict[str, Any] = {"__metadata__": {_METADATA: text}}
        end = 0
        for (name, (dtype, shape)), piece in zip(document.arrays().items(), data, strict=True):
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(piece)]}
            end += len(piece)
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % _ALIGNMENT)
        return b"".join([len(encoded).to_bytes(8, "little"), encoded, *data])

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a file begins as safetensors do, as goldens are; `read` finds out the rest."""
        try:
            if not path.is_file():
                return False
            with path.open("rb") as file:
                return file.read(9)[8:] == b"{"
        except OSError:
            return False

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Raises UserError for a file that is no golden of this version, is damaged, or contradicts itself."""
        header = read_header(path)
        document = _document(path)
        wanted = document.arrays()
        found = {name: (tensor.dtype, tensor.shape) for name, tensor in header.tensors.items()}
        if found != wanted:
            name = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))[0]
            raise RequestError(
                f"{path}: array {shown(name, 120)}",
                expected=_spec(wanted.get(name)),
                got=_spec(found.get(name)),
                fix="Record it again.",
            )
        data = path.read_bytes()
        pieces = {name: data[tensor.offset : tensor.offset + tensor.nbytes] for name, tensor in header.tensors.items()}
        if _digest([pieces[name] for name in wanted]) != document.data_sha256:
            raise RequestError(
                f"{path}: arrays", expected="the recorded SHA-256", got="another", fix="The file is damaged."
            )
        arrays = {
            name: np.frombuffer(pieces[name], NUMPY[dtype]).reshape(shape) for name, (dtype, shape) in wanted.items()
        }
        _check_arrays(path, document, arrays)
        return cls(document, arrays)

    def _data(self, name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
        array = self.arrays[name]
        if array.shape != shape or array.dtype != NUMPY[dtype]:
            raise InternalError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        return array.tobytes()


def _digest(data: list[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    return digest.hexdigest()


def _spec(spec: tuple[str, tuple[int, ...]] | None) -> str:
    return "none" if spec is None else f"{spec[0]} {list(spec[1])}"


def _document(path: Path) -> Document:
    """The JSON part, checked. The header has been found to be consistent."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        metadata = parse_json_object(file.read(length), f"{path}: header", RequestError).get("__metadata__", {})
    if _METADATA not in metadata:
        raise RequestError(str(path), expected="a golden", got="a safetensors file without one's metadata")
    where = f"{path}: golden"
    value = parse_json_object(metadata[_METADATA].encode(), where, RequestError, unique_keys=True)
    kind, version = value.get("format"), value.get("version")
    if kind != FORMAT or version != VERSION:
        raise RequestError(
            where, expected=f"{FORMAT} version {VERSION}", got=f"{shown(kind)} version {shown(version)}",
            fix="Record it again with this program.",
        )  # fmt: skip
    document = from_json(Document, value, where)
    _check(document, where)
    return document


def _check(document: Document, where: str) -> None:
    """Ranges, and what depends on each other. Raises RequestError."""
    settings, identity = document.settings, document.identity
    _check_settings(settings, where)
    sizes = {
        "identity.vocab_size": identity.vocab_size,
        "identity.hidden_size": identity.hidden_size,
        **{f"values {value.name!r}: width": value.width for value in document.values},
    }
    for name, size in sizes.items():
        _require(1 <= size <= _MOST_WIDTH, f"{where}: {name}", f"1 to {_MOST_WIDTH}", size)
    _require(settings.top <= identity.vocab_size, f"{where}: settings.top", "at most the vocabulary", settings.top)
    _require(0 < document.tokens <= _MOST_TOKENS, f"{where}: prompts", f"1 to {_MOST_TOKENS} tokens", document.tokens)
    for place, prompt in enumerate(document.prompts):
        here = f"{where}: prompts[{place}]"
        _require(len(prompt.ids) > 0, f"{here}.ids", "at least one token", 0)
        _require(
            len(prompt.greedy) == settings.new_tokens,
            f"{here}.greedy",
            f"{settings.new_tokens} tokens",
            len(prompt.greedy),
        )
        for token in (*prompt.ids, *prompt.greedy):
            _require(0 <= token < identity.vocab_size, here, f"tokens below {identity.vocab_size}", token)
        _require(math.isfinite(prompt.nll), f"{here}.nll", "a finite number", prompt.nll)
    for value in document.values:
        _require(
            0 <= value.chosen <= value.width,
            f"{where}: values {value.name!r}: chosen",
            f"0 to {value.width}",
            value.chosen,
        )
    names = [value.name for value in document.values]
    _require(len(set(names)) == len(names), f"{where}: values", "names that occur once", "one twice")
    _require(settings.digest != "none" or not names, f"{where}: values", "none, as settings.digest says", len(names))
    if document.text is not None:
        _require(
            0 < document.text.tokens <= _MOST_TOKENS,
            f"{where}: text.tokens",
            f"1 to {_MOST_TOKENS}",
            document.text.tokens,
        )
    for profile in document.profiles:
        for bound in profile.bounds:
            here = f"{where}: profile {profile.name!r}: {bound.metric}"
            _require(bound.metric in METRICS, here, "a metric", bound.metric)
            _require(bound.bound >= 0, f"{here}: bound", "a number of at least 0", bound.bound)


def _check_settings(settings: Settings, where: str) -> None:
    for name, low, high in (
        ("top", 0, _MOST_WIDTH), ("new_tokens", 1, _MOST_TOKENS), ("projections", 1, 4096),
        ("seed", 0, 2**63 - 1), ("chunk_tokens", 1, _MOST_TOKENS),
    ):  # fmt: skip
        value = getattr(settings, name)
        _require(low <= value <= high, f"{where}: settings.{name}", f"{low} to {high}", value)
    _require(settings.digest in DIGESTS, f"{where}: settings.digest", f"one of {', '.join(DIGESTS)}", settings.digest)
    _require(settings.detail in DETAILS, f"{where}: settings.detail", f"one of {', '.join(DETAILS)}", settings.detail)


def _check_arrays(path: Path, document: Document, arrays: Mapping[str, Array]) -> None:
    """Numbers are finite, and numbers of things are those of things that exist. Raises RequestError."""
    limits = {"logits.ids": document.identity.vocab_size, "greedy.ids": document.identity.vocab_size,
              "text.ids": document.identity.vocab_size,
              **{f"{value.name}.ids": value.width for value in document.values}}  # fmt: skip
    for name, array in arrays.items():
        where = f"{path}: array {shown(name, 120)}"
        if array.dtype.kind == "f":
            _require(bool(np.isfinite(array).all()), where, "finite numbers", "inf or NaN")
        elif array.size:
            _require(
                int(array.min()) >= 0 and int(array.max()) < limits[name], where,
                f"numbers from 0 to {limits[name] - 1}", f"{int(array.min())} to {int(array.max())}",
            )  # fmt: skip


def _require(right: bool, what: str, expected: str, got: object) -> None:
    if not right:
        raise RequestError(what, expected=expected, got=shown(got))
