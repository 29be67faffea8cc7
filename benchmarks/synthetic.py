"""Makes a checkpoint with random weights in Hugging Face's layout: BF16 safetensors, one shard per layer.

    python -m benchmarks.synthetic 0.5b FOLDER

Only one shard is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from benchmarks.presets import PRESETS
from dsv3export.checkpoint import expected_tensors
from dsv3export.config import ModelConfig

_OUTSIDE_LAYERS = "outside"


def write_checkpoint(folder: Path, config_dict: Mapping[str, Any], seed: int = 0) -> Path:
    """Write the checkpoint into `folder`, which is made if need be, and return it.

    A tensor depends on `seed`, its name and its shape only.
    """
    config = ModelConfig.from_dict(dict(config_dict), source="preset")
    shapes = sorted(expected_tensors(config).items(), key=lambda item: _shard(item[0]))
    parts = [dict(part) for _, part in groupby(shapes, key=lambda item: _shard(item[0]))]
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):06d}.safetensors"
        tensors = {name: _tensor(name, shape, seed) for name, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config_dict, indent=2), encoding="utf-8")
    return folder


def _shard(name: str) -> str:
    """What is stored together: a layer (numbered so that names sort), or all that is in none."""
    parts = name.split(".")
    return f"layer {int(parts[2]):05d}" if parts[1] == "layers" else _OUTSIDE_LAYERS


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """A tensor scaled so that activations stay at a size of about 1 and tokens differ in their choice of experts.

    Matrices [N, K] have a standard deviation of K^-1/2; what writes to the residual stream is smaller, so that the
    stream does not grow much with depth; the router's scores spread, and its bias (float32, as official) is of the
    size of that spread.
    """
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith("e_score_correction_bias"):
        return noise * np.float32(0.2)
    if name.endswith("norm.weight"):
        noise *= 0.1
        noise += 1
    elif not name.endswith("embed_tokens.weight"):
        gain = {"gate": 2.0, "o_proj": 0.7, "down_proj": 0.7}.get(name.split(".")[-2], 1.0)
        noise *= gain * shape[-1] ** -0.5
    return noise.astype(ml_dtypes.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, PRESETS[arguments.preset], arguments.seed)


if __name__ == "__main__":
    main()
