"""`Checkpoint`: a Hugging Face folder of safetensors, checked when it is opened and read tensor by tensor."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from dsv3export.checkpoint.fp8 import block_rows, check_scale, dequantize
from dsv3export.checkpoint.header import ShardHeader, TensorInfo
from dsv3export.checkpoint.shards import read_shards
from dsv3export.checkpoint.validate import FP8, HEAD, SCALE, check_tensors, is_harmless
from dsv3export.config import ModelConfig
from dsv3export.config.json_file import parse_json_object, read_small_file
from dsv3export.config.model_config import MAX_CONFIG_BYTES
from dsv3export.dtypes import NUMPY
from dsv3export.errors import CheckpointError, ConfigError, InternalError

_COMPARED_AT_ONCE = 2**24


class Checkpoint:
    """An opened checkpoint. Tensor data is mapped, never loaded as a whole.

    Attributes:
        path: The folder, as given.
        config: Its config.json.
        tensors: All stored tensors by name, scales of FP8 weights included.
        shards: The weight files' headers by file name relative to `path`.
    """

    def __init__(self, path: Path, config: ModelConfig, config_sha256: str, shards: Mapping[str, ShardHeader]) -> None:
        self.path = path
        self.config = config
        self.shards: Mapping[str, ShardHeader] = MappingProxyType(dict(shards))
        tensors = {
            name: info for shard in shards.values() for name, info in shard.tensors.items() if not is_harmless(name)
        }
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._config_sha256 = config_sha256
        self._sizes = {shard.file: shard.size for shard in shards.values()}
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Opens the checkpoint in folder `path` and checks all of it but the weights' values.

        Raises:
            ConfigError: config.json is missing, unreadable, or describes no model that we build.
            CheckpointError: Weight files or tensors are missing, surplus, damaged, or not what the config says.
        """
        folder = Path(path)
        if not os.path.isdir(folder):
            got = "a file" if os.path.exists(folder) else "nothing there"
            fix = "Give the folder of a downloaded Hugging Face checkpoint"
            raise CheckpointError(str(path), expected="a checkpoint folder", got=got, fix=fix)
        config_path = folder / "config.json"
        data = read_small_file(config_path, ConfigError, max_bytes=MAX_CONFIG_BYTES)
        values = parse_json_object(data, str(config_path), ConfigError)
        config = ModelConfig.from_dict(values, source=str(config_path))
        checkpoint = cls(folder, config, hashlib.sha256(data).hexdigest(), read_shards(folder))
        check_tensors(str(folder), config, checkpoint.tensors)
        if config.tie_word_embeddings and HEAD in checkpoint.tensors:
            checkpoint._check_tied_head()
        return checkpoint

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor as stored: a read-only view of the mapped file, in the stored dtype and shape."""
        info = self._info(name)
        dtype = NUMPY[info.dtype]
        flat = np.frombuffer(self._map(info.file), dtype=dtype, count=info.nbytes // dtype.itemsize, offset=info.offset)
        return flat.reshape(info.shape)

    def float32(self, name: str, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
        """The tensor's value as float32; an FP8 weight is multiplied by its block scales.

        A tensor stored as float32 is not copied: the result is then a read-only view.

        Args:
            rows: A part of the first axis; of an FP8 weight it begins with a block.

        Raises:
            CheckpointError: A scale is zero, negative, infinite or NaN; names file, tensor and place.
        """
        stored = self.array(name)[rows] if rows != slice(None) else self.array(name)
        if self._info(name).dtype != FP8:
            return stored.astype(np.float32, copy=False)
        if self.config.quantization is None or f"{name}{SCALE}" not in self.tensors:
            raise InternalError(f"the FP8 tensor {name} has no scale")
        scale = self.array(f"{name}{SCALE}")
        check_scale(self._info(f"{name}{SCALE}"), scale)
        block = self.config.quantization.block
        return dequantize(stored, scale[block_rows(rows, block[0])], block)

    def forget(self, name: str) -> None:
        """Let go of the memory that the tensor's mapped pages take; they are read again when they are needed."""
        info = self._info(name)
        begin = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        length = info.offset + info.nbytes - begin
        if length and info.file in self._maps:
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, begin, length)

    def shard_of(self, name: str) -> str:
        """The weight file that holds the tensor, relative to `path`."""
        file = self._info(name).file
        return next(shard for shard, header in self.shards.items() if header.file == file)

    def fingerprint(self) -> dict[str, Any]:
        """What tells this checkpoint from another or an altered one, without reading weights; JSON-able."""
        files = {
            name: {"size": shard.size, "header_sha256": shard.header_sha256} for name, shard in self.shards.items()
        }
        return {"config_sha256": self._config_sha256, "files": files}

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InternalError(f"{self.path} has no tensor {name}")
        return self.tensors[name]

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            try:
                with file.open("rb") as stream:
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as bad:
                raise CheckpointError(str(file), expected="a readable file", got=str(bad)) from None
            if len(mapped) != self._sizes[file]:
                got = f"{len(mapped)}: the file has changed since it was opened"
                raise CheckpointError(str(file), expected=f"{self._sizes[file]} bytes", got=got)
            self._maps[file] = mapped
        return self._maps[file]

    def _check_tied_head(self) -> None:
        """A stored head must be what tie_word_embeddings says it is: the embedding."""
        head, embedding = self.array(HEAD), self.array("model.embed_tokens.weight")
        rows = max(1, _COMPARED_AT_ONCE // max(1, embedding[0].nbytes))
        same = head.dtype == embedding.dtype and all(
            head[row : row + rows].tobytes() == embedding[row : row + rows].tobytes()
            for row in range(0, len(embedding), rows)
        )
        if not same:
            what = f'{self._info(HEAD).file}: tensor "{HEAD}"'
            fix = "Set tie_word_embeddings to false in config.json if the head is one of its own"
            raise CheckpointError(what, expected="the same bytes as model.embed_tokens.weight", got="others", fix=fix)
