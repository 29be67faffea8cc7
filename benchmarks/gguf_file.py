"""Writes a checkpoint as a GGUF file for llama.cpp, and quantises such a file by llama.cpp's own quantiser.

    python -m benchmarks.gguf_file CHECKPOINT OUT.gguf --type BF16|F16|F32|Q8_0|Q4_0

Needs the packages of `make bench-setup`. One tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from benchmarks.peers import require_peers

    require_peers("gguf", "llama_cpp")

from benchmarks.gguf_layout import ARCHITECTURE, GgufTensor, metadata, tensors
from dsv3export.checkpoint import Checkpoint

# llama.cpp's numbers for what most tensors of a file are (enum llama_ftype).
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
_STORED = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def write_gguf(checkpoint: Checkpoint, out: Path, file_type: str) -> Path:
    """Write `out` with matrices in `file_type` ("F32", "F16" or "BF16"), norms and routers in float32; return it.

    Raises:
        ValueError: llama.cpp cannot compute this model.
    """
    import gguf

    writer = gguf.GGUFWriter(out, ARCHITECTURE)
    for key, value in metadata(checkpoint.config, checkpoint.path.name).items():
        _add_value(writer, key, value)
    writer.add_file_type(FILE_TYPES[file_type])
    parts = list(tensors(checkpoint.config))
    for part in parts:
        stored = "F32" if part.exact else file_type
        dtype = _STORED[stored]
        size = int(np.prod(part.shape)) * dtype.itemsize
        writer.add_tensor_info(part.name, part.shape, dtype, size, gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for part in parts:
        writer.write_tensor_data(_converted(part, checkpoint, _STORED["F32" if part.exact else file_type]))
    writer.close()
    return out


def quantise_gguf(source: Path, out: Path, file_type: str, threads: int = 2, head_type: str | None = "Q8_0") -> Path:
    """Quantise a BF16, F16 or F32 file to "Q8_0" or "Q4_0" as llama-quantize does, and return `out`.

    Args:
        head_type: What `output.weight` becomes; None for what llama-quantize chooses (for Q4_0: Q6_K). Our int4 engines
            keep the head at 8 bits.

    Raises:
        RuntimeError: llama.cpp refused the file.
    """
    import llama_cpp

    from benchmarks.llama_cpp_model import keep_quiet

    keep_quiet()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, FILE_TYPES[file_type]
    if head_type is not None:
        settings.output_tensor_type = getattr(llama_cpp, f"GGML_TYPE_{head_type}")
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings))
    if failed:
        raise RuntimeError(f"llama.cpp could not quantise {source} to {file_type} (code {failed})")
    return out


def types_in(file: Path) -> dict[str, str]:
    """The type of each tensor of a GGUF file."""
    import gguf

    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


def _add_value(writer: object, key: str, value: str | int | float | bool) -> None:
    kind = {str: "string", bool: "bool", int: "uint32", float: "float32"}[type(value)]
    getattr(writer, f"add_{kind}")(key, value)


def _converted(part: GgufTensor, checkpoint: Checkpoint, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    value = part.value(checkpoint.float32)
    if value.shape != part.shape:
        raise ValueError(f"{part.name}: expected {part.shape}, got {value.shape}")
    return np.ascontiguousarray(value, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=sorted(FILE_TYPES), default="BF16")
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    if options.type in _STORED:
        write_gguf(checkpoint, options.out, options.type)
    else:
        with TemporaryDirectory(dir=options.out.parent) as folder:
            quantise_gguf(write_gguf(checkpoint, Path(folder) / "source.gguf", "BF16"), options.out, options.type)
    print(dict(Counter(types_in(options.out).values())))


if __name__ == "__main__":
    main()
