"""Copies of checkpoints and engines that share their bytes with the original, and edits that spare it.

A copy consists of symbolic links, as in a Hugging Face cache; an edit puts a new file in the place of one link.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.synthetic import framed

Header = dict[str, Any]


def linked_copy(original: Path, copy: Path) -> Path:
    """A folder of links to the files of the folder `original`."""
    copy.mkdir(parents=True)
    for file in original.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    return copy


def hard_copy(original: Path, copy: Path) -> Path:
    """A folder tree of hard links, or copies on another disk; the modification times are the original's."""
    return Path(shutil.copytree(original, copy, copy_function=_link_or_copy))


def replace_file(path: Path, data: bytes | str) -> None:
    """Puts a new file in the place of `path`, whose old content, perhaps shared, stays as it was."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def edit_bytes(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """`edit` maps the old content of `path` to the new."""
    replace_file(path, edit(path.read_bytes()))


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """`edit` changes the JSON object in place."""
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    replace_file(path, json.dumps(document))


def read_header(path: Path) -> tuple[Header, bytes]:
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def edit_header(path: Path, edit: Callable[[Header], object]) -> None:
    """`edit` changes the header of a safetensors file in place; the data stay as they are."""
    header, data = read_header(path)
    edit(header)
    replace_file(path, framed(header) + data)


def edit_tensor(path: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """`edit` maps the bytes of one tensor to as many others."""
    header, data = read_header(path)
    start, end = header[name]["data_offsets"]
    changed = edit(data[start:end])
    assert len(changed) == end - start
    replace_file(path, framed(header) + data[:start] + changed + data[end:])


def drop_tensor(path: Path, name: str) -> None:
    """Takes a tensor out of a safetensors file and closes the gap."""
    header, data = read_header(path)
    start, end = header.pop(name)["data_offsets"]
    for tensor in header.values():
        if "data_offsets" in tensor and tensor["data_offsets"][0] >= end:
            tensor["data_offsets"] = [offset - (end - start) for offset in tensor["data_offsets"]]
    replace_file(path, framed(header) + data[:start] + data[end:])


def add_tensor(path: Path, name: str, dtype: str, shape: list[int], data: bytes) -> None:
    """Appends a tensor to a safetensors file."""
    header, old = read_header(path)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(old), len(old) + len(data)]}
    replace_file(path, framed(header) + old + data)


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
