"""Finding a checkpoint's .safetensors files: one, or many with an index."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from dsv3export.checkpoint.header import ShardHeader, read_header, summary
from dsv3export.config.json_file import read_json_object, shown
from dsv3export.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 2**28
_MAX_NAME_BYTES = 255


def read_shards(folder: Path) -> dict[str, ShardHeader]:
    """The headers of all weight files in `folder`, by file name relative to it.

    As in transformers, ``model.safetensors`` goes before an index. Files may be symbolic links (Hugging Face's cache
    has them point to ``../../blobs``); names in the index may not lead out of the folder.

    Raises:
        CheckpointError: No weights, a bad index, a missing or bad file, or an index that is wrong about the files.
    """
    # lexists: a link that leads nowhere deserves an error of its own.
    if os.path.lexists(folder / SINGLE):
        return {SINGLE: read_header(folder / SINGLE)}
    if not os.path.lexists(folder / INDEX):
        raise CheckpointError(str(folder), expected=f"{SINGLE} or {INDEX}", got="neither", fix=_hint(folder))
    weight_map = _read_weight_map(folder / INDEX)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not os.path.exists(folder / name)]
    if missing:
        what = f"{folder / INDEX}: names files that do not exist: {summary(missing)}"
        raise CheckpointError(what, fix="Download the checkpoint again")
    shards = {name: read_header(folder / name) for name in names}
    _check_weight_map(folder, weight_map, shards)
    return shards


def _read_weight_map(index: Path) -> dict[str, str]:
    values = read_json_object(index, CheckpointError, max_bytes=_MAX_INDEX_BYTES, unique_keys=True)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        got = shown(weight_map) if "weight_map" in values else "no such key"
        raise CheckpointError(f"{index}: weight_map", expected="a JSON object, tensor name to file name", got=got)
    good: set[str] = set()  # a hundred thousand tensors lie in a few hundred files
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or (name not in good and not _is_inside(name)):
            expected = "the name of a .safetensors file in the same folder"
            raise CheckpointError(f"{index}: weight_map: {shown(tensor, 120)}", expected=expected, got=shown(name))
        good.add(name)
    return weight_map


def _is_inside(name: str) -> bool:
    """Whether `name` is a plain relative path to a .safetensors file that stays in its folder."""
    path = PurePosixPath(name)
    if not name.endswith(".safetensors") or not name.isprintable() or path.is_absolute() or "\\" in name:
        return False
    return len(name) <= 4 * _MAX_NAME_BYTES and all(
        part != ".." and len(part.encode()) <= _MAX_NAME_BYTES for part in path.parts
    )


def _check_weight_map(folder: Path, weight_map: dict[str, str], shards: dict[str, ShardHeader]) -> None:
    """Index and files must agree on which tensor is where."""
    absent = [tensor for tensor, name in weight_map.items() if tensor not in shards[name].tensors]
    if absent:
        file = folder / weight_map[absent[0]]
        there = [tensor for tensor in absent if weight_map[tensor] == weight_map[absent[0]]]
        what = f"{file}: missing tensors that {INDEX} says are in it: {summary(there)}"
        others = len(absent) - len(there)
        raise CheckpointError(what, fix=f"{others} more are missing from other files" if others else "")
    for name, shard in shards.items():
        unlisted = [tensor for tensor in shard.tensors if weight_map.get(tensor) != name]
        if unlisted:
            raise CheckpointError(f"{folder / name}: tensors that {INDEX} does not say are in it: {summary(unlisted)}")


def _hint(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return "Pickled weights are never loaded: convert them to safetensors"
    if any(folder.glob("*.safetensors")):
        return f"The shards' {INDEX} is missing: download the checkpoint again"
    return "Is this the folder of a Hugging Face checkpoint?"
