"""Checkpoints of true shapes that take next to no disk: shards are files of holes, but for headers and scales.

The layout is the published one of DeepSeek-V3: 163 shards, in which the decoder layers of one of eight groups, the last
being the MTP layer, are filled in turn, and the order that the safetensors library gives tensors in a file.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv3export.checkpoint import expected_tensors
from dsv3export.checkpoint.expected import layer_of
from dsv3export.checkpoint.shards import INDEX
from dsv3export.checkpoint.validate import SCALE, scale_shape
from dsv3export.config import ModelConfig
from dsv3export.dtypes import itemsize
from dsv3export.engine.resources import require_free_disk, resource_errors
from dsv3export.errors import ResourceError
from dsv3export.progress import NoProgress, Progress

# A shard is closed when it has as many numbers. With these and the groups the published sizes come out.
SHARD_ELEMENTS = 2**32
FIRST_LAYERS_OF_GROUPS = (0, 7, 15, 23, 31, 39, 47, 54)
# What every FP8 block is multiplied with: of a size that trained weights have, and a power of two.
SCALE_VALUE = 2.0**-12
_QUANTISED = (
    "q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip
# The library writes the widest types first, and sorts by name.
_FILE_ORDER = ("F32", "BF16", "F8_E4M3")
_HEADER_ALIGNMENT = 8
# A hole's neighbours take whole blocks of the file system.
_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class SparseTensor:
    """A tensor to be: `dtype` is a safetensors name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class SparseCheckpoint:
    """What was written: counts, the size that the files have, and the bytes that they take on the disk."""

    shards: int
    tensors: int
    nbytes: int
    disk_bytes: int


def write_sparse(
    folder: Path, config_dict: Mapping[str, Any], tokenizer: Path | None = None, progress: Progress | None = None
) -> SparseCheckpoint:
    """Writes a checkpoint into `folder`, which must be new or empty. All weights are 0, all FP8 scales 2^-12.

    Args:
        config_dict: The config.json; FP8 where it has a quantization_config, else BF16.
        tokenizer: A checkpoint whose tokenizer files are copied.

    Raises:
        UserError: The folder has content, its disk is full or has no holes in files, the config is bad.
    """
    config = ModelConfig.from_dict(dict(config_dict), source="preset")
    _require_empty(folder)
    progress = progress or NoProgress()
    shards = list(plan_shards(config))
    names = [f"model-{number:05d}-of-{len(shards):06d}.safetensors" for number in range(1, len(shards) + 1)]
    with resource_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        require_free_disk(folder, sum(map(_solid_bytes, shards)))
        progress.start("writing shards", sum(map(len, shards)), "tensors")
        for name, tensors in zip(names, shards, strict=True):
            _write_shard(folder / name, tensors)
            progress.advance(len(tensors))
        total = sum(tensor.nbytes for tensors in shards for tensor in tensors)
        weight_map = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config_dict, indent=2), encoding="utf-8")
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json") if tokenizer else ():
            shutil.copyfile(Path(tokenizer or "") / file, folder / file)
        progress.finish()
        statuses = [path.stat() for path in folder.iterdir()]
    sizes = sum(status.st_size for status in statuses), sum(status.st_blocks for status in statuses) * 512
    return SparseCheckpoint(len(shards), sum(map(len, shards)), *sizes)


def plan_shards(config: ModelConfig) -> Iterator[list[SparseTensor]]:
    """The tensors of each shard, in the order of the file."""
    for group in _groups(config):
        shard: list[SparseTensor] = []
        room = SHARD_ELEMENTS
        for tensors in group:
            if room <= 0 and not _is_copy(tensors[0].name):
                yield _in_file_order(shard)
                shard, room = [], SHARD_ELEMENTS
            shard += tensors
            room -= sum(math.prod(tensor.shape) for tensor in tensors)
        yield _in_file_order(shard)


def _groups(config: ModelConfig) -> list[list[list[SparseTensor]]]:
    """The groups' tensors, copies last; one that is quantised comes with its scale."""
    starts = [start for start in FIRST_LAYERS_OF_GROUPS if start < config.num_hidden_layers]
    starts += config.mtp_layer_ids
    groups: list[list[list[SparseTensor]]] = [[] for _ in starts]
    for name, shape in sorted(expected_tensors(config).items(), key=lambda item: _is_copy(item[0])):
        layer = layer_of(name)
        if layer is None:
            layer = 0 if name == "model.embed_tokens.weight" else config.num_hidden_layers - 1
        groups[sum(start <= layer for start in starts) - 1].append(_stored(config, name, shape))
    return groups


def _is_copy(name: str) -> bool:
    """Whether a tensor is the copy that an MTP layer has of the embedding or the head; shards are split as without."""
    return layer_of(name) is not None and name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))


def _stored(config: ModelConfig, name: str, shape: tuple[int, ...]) -> list[SparseTensor]:
    if config.quantization is not None and name.split(".")[-2] in _QUANTISED:
        scales = scale_shape(shape, config.quantization.block)
        return [SparseTensor(name, "F8_E4M3", shape), SparseTensor(f"{name}{SCALE}", "F32", scales)]
    return [SparseTensor(name, "F32" if name.endswith("e_score_correction_bias") else "BF16", shape)]


def _in_file_order(tensors: list[SparseTensor]) -> list[SparseTensor]:
    return sorted(tensors, key=lambda tensor: (_FILE_ORDER.index(tensor.dtype), tensor.name))


def _solid_bytes(tensors: Sequence[SparseTensor]) -> int:
    """What a shard takes on the disk, at most."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors if tensor.dtype == "F32") + _SLACK_BYTES


def _write_shard(path: Path, tensors: Sequence[SparseTensor]) -> None:
    """The header, the float32 tensors (which come first), and a hole for the rest."""
    with path.open("xb") as file:
        file.write(_header(tensors))
        start = file.tell()
        for tensor in tensors:
            if tensor.name.endswith(SCALE):
                file.write(np.full(tensor.shape, SCALE_VALUE, "<f4").tobytes())
            elif tensor.dtype == "F32":
                file.write(bytes(tensor.nbytes))
        file.truncate(start + sum(tensor.nbytes for tensor in tensors))
        file.flush()
    status = path.stat()
    if status.st_blocks * 512 > _solid_bytes(tensors):
        path.unlink()
        raise ResourceError(
            f"disk of {path.parent}", expected="a file system with sparse files",
            got=f"one that takes {status.st_blocks * 512 / 1e9:.1f} GB for a file of holes", fix="Choose another disk.",
        )  # fmt: skip


def _header(tensors: Sequence[SparseTensor]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        table[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResourceError(str(folder), expected="a new or empty folder", got="content", fix="Choose another folder.")
