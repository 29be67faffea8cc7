"""A golden's file: read back as it was written, and refused in one line if it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from dsv3export.errors import InternalError, UserError
from dsv3export.golden import Golden
from tests.golden.goldens import small_golden
from tests.support.altered import edit_header

Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("digest", ["none", "norm", "projections", "full"])
@pytest.mark.parametrize("top", [0, 4])
def test_what_is_written_is_read(digest: str, top: int, tmp_path: Path) -> None:
    written = small_golden(digest=digest, top=top)
    path = tmp_path / "small.golden"
    path.write_bytes(written.to_bytes())
    found = Golden.read(path)
    assert replace(found.document, data_sha256="") == written.document
    assert found.arrays.keys() == written.arrays.keys()
    for name, array in written.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert found.to_bytes() == written.to_bytes()


def test_any_program_reads_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "small.golden"
    path.write_bytes(small_golden().to_bytes())
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == small_golden().arrays.keys()
    np.testing.assert_array_equal(loaded["logits.values"], small_golden().arrays["logits.values"])


def test_what_does_not_fit_is_not_written() -> None:
    golden = small_golden()
    with pytest.raises(InternalError):
        Golden(golden.document, {**golden.arrays, "greedy.ids": np.zeros((1, 1), np.int32)}).to_bytes()


def document(edit: Edit) -> Edit:
    """Changes the JSON in the header's metadata."""

    def apply(header: dict[str, Any]) -> None:
        value = json.loads(header["__metadata__"]["golden"])
        edit(value)
        header["__metadata__"]["golden"] = json.dumps(value)

    return apply


def setting(name: str, value: object) -> Edit:
    return document(lambda d: d["settings"].update({name: value}))


def member(name: str, value: object) -> Edit:
    return document(lambda d: d.update({name: value}))


BAD: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "no golden": (lambda h: h["__metadata__"].pop("golden"), ("a golden",)),
    "no metadata": (lambda h: h.pop("__metadata__"), ("a golden",)),
    "no JSON": (lambda h: h["__metadata__"].update(golden="{"), ("JSON",)),
    "a list": (lambda h: h["__metadata__"].update(golden="[]"), ("object",)),
    "another format": (member("format", "x"), ("dsv3export-golden", '"x"')),
    "a later version": (member("version", 2), ("version 1", "version 2", "Record it again")),
    "a key missing": (document(lambda d: d.pop("prompts")), ("prompts",)),
    "prompts of another type": (member("prompts", 3), ("prompts", "array")),
    "no prompts": (member("prompts", []), ("prompts", "1 to")),
    "an empty prompt": (document(lambda d: d["prompts"][0].update(ids=[])), ("prompts[0].ids", "at least one")),
    "a token beyond the vocabulary": (document(lambda d: d["prompts"][0]["ids"].__setitem__(0, 50)), ("below 50",)),
    "a negative token": (document(lambda d: d["prompts"][1]["greedy"].__setitem__(0, -1)), ("prompts[1]", "-1")),
    "a short continuation": (document(lambda d: d["prompts"][0]["greedy"].pop()), ("prompts[0].greedy", "3 tokens")),
    "a cost that is none": (document(lambda d: d["prompts"][0].update(nll="NaN")), ("prompts[0].nll", "finite")),
    "a digest that is none": (setting("digest", "sum"), ("settings.digest", "projections", "sum")),
    "a detail that is none": (setting("detail", ""), ("settings.detail", "layers")),
    "more kept than there is": (setting("top", 51), ("settings.top", "51")),
    "a huge count": (setting("new_tokens", 1 << 62), ("settings.new_tokens",)),
    "a huge width": (document(lambda d: d["values"][0].update(width=1 << 60)), ("layers.0", "width")),
    "more chosen than there are": (document(lambda d: d["values"][1].update(chosen=9)), ("mlp.gate", "chosen", "9")),
    "a name twice": (document(lambda d: d["values"].append(d["values"][0])), ("values", "once")),
    "a bound below zero": (
        document(lambda d: d["profiles"][0]["bounds"][0].update(bound=-1.0)),
        ("same-int4", "bound"),
    ),
    "a bound that is no number": (
        document(lambda d: d["profiles"][0]["bounds"][0].update(bound="NaN")),
        ("same-int4", "bound"),
    ),
    "a bound of no metric": (
        document(lambda d: d["profiles"][0]["bounds"][0].update(metric="speed")),
        ("same-int4", "a metric", "speed"),
    ),
    "an array of another type": (lambda h: h["logits.values"].update(dtype="I32"), ("logits.values", "F32", "I32")),
    "an array of another shape": (lambda h: h["logits.values"].update(shape=[16, 1]), ("logits.values", "[4, 4]")),
    "an array too many": (
        lambda h: h.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
        ("more", "none"),
    ),
    "a digest that does not fit": (member("data_sha256", "0" * 64), ("SHA-256", "damaged")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    edit, says = BAD[name]
    path = tmp_path / "small.golden"
    path.write_bytes(small_golden().to_bytes())
    edit_header(path, edit)
    with pytest.raises(UserError) as caught:
        Golden.read(path)
    assert [text for text in says if text not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    ("array", "value", "says"),
    [
        ("logits.ids", 50, "from 0 to 49"),
        ("greedy.ids", -1, "from 0 to 49"),
        ("text.ids", 50, "from 0 to 49"),
        ("layers.1.mlp.gate.ids", 8, "from 0 to 7"),
        ("layers.1.mlp.gate.margin", np.nan, "finite"),
        ("logits.total", np.inf, "finite"),
        ("text.nll", np.nan, "finite"),
    ],
)
def test_numbers_of_things_that_do_not_exist(array: str, value: float, says: str, tmp_path: Path) -> None:
    golden = small_golden()
    spoiled = golden.arrays[array].copy()
    spoiled.flat[0] = value
    path = tmp_path / "small.golden"
    path.write_bytes(Golden(golden.document, {**golden.arrays, array: spoiled}).to_bytes())
    with pytest.raises(UserError, match=array) as caught:
        Golden.read(path)
    assert says in str(caught.value)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_cut_file_is_refused(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "small.golden"
    path.write_bytes(small_golden().to_bytes()[:kept])
    with pytest.raises(UserError, match=r"small\.golden"):
        Golden.read(path)


def test_profiles_replace_their_namesakes() -> None:
    golden = small_golden()
    (old,) = golden.document.profiles
    changed = golden.with_profile(replace(old, margin=9.0)).with_profile(replace(old, name="a"))
    assert [(profile.name, profile.margin) for profile in changed.document.profiles] == [("a", 4.0), ("same-int4", 9.0)]
