"""Random-weight checkpoints in Hugging Face's layout, for any config that `ModelConfig` accepts.

The writer knows nothing of the product's reader: headers are put together here.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from dsv3export.checkpoint import expected_tensors
from dsv3export.config import ModelConfig

Array = npt.NDArray[Any]

FP8_CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

# What official FP8 checkpoints quantise.
_QUANTISED = (
    "q_proj",
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
_DTYPE_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(np.int64): "I64",
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The JSON of a very small DeepSeek-V3 config (2 layers, 8 experts in 4 groups, YaRN), with `changes`."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "kv_lora_rank": 20,
        "q_lora_rank": 28,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": 64,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        **changes,
    }


def random_checkpoint(
    path: Path,
    config_dict: Mapping[str, Any],
    seed: int,
    dtype: Literal["F32", "BF16", "FP8"] = "F32",
    shards: int = 1,
    tokenizer_from: Path | None = None,
) -> Path:
    """Writes a checkpoint with random weights into the folder `path`, which is made, and returns it.

    A tensor depends on `seed` and its name only, so that two dtypes of one seed are roundings of the same model. With
    "FP8" the scale of each weight is in another shard than the weight, if there is more than one shard, and config.json
    gets a quantization_config; with the other dtypes it has none. The router's bias is always float32.
    """
    raw = {key: value for key, value in config_dict.items() if key != "quantization_config"}
    if dtype == "FP8":
        raw["quantization_config"] = FP8_CONFIG
    raw["torch_dtype"] = "float32" if dtype == "F32" else "bfloat16"
    config = ModelConfig.from_dict(raw)
    stored: dict[str, Array] = {}
    scales: dict[str, Array] = {}
    for name, shape in expected_tensors(config).items():
        value = random_tensor(config, name, shape, seed)
        if dtype == "FP8" and name.split(".")[-2] in _QUANTISED:
            stored[name], scales[f"{name}_scale_inv"] = quantize_fp8(value)
        elif dtype == "F32" or name.endswith("e_score_correction_bias"):
            stored[name] = value
        else:
            stored[name] = value.astype(ml_dtypes.bfloat16)
    if config.num_nextn_predict_layers:
        _share_mtp_copies(config, stored)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw, indent=2))
    write_shards(path, _split(stored, scales, shards))
    for file in TOKENIZER_FILES if tokenizer_from else ():
        if tokenizer_from and (tokenizer_from / file).exists():
            shutil.copyfile(tokenizer_from / file, path / file)
    return path


def random_tensor(config: ModelConfig, name: str, shape: Sequence[int], seed: int) -> Array:
    """A float32 tensor scaled so that every activation of the model has a size of about 1.

    Router weights are larger and its bias is of the size of the scores' spread: selection by biased scores then differs
    from selection by the scores themselves for most tokens, and near ties are rare.
    """
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(tuple(shape), dtype=np.float32)
    if name.endswith("norm.weight"):
        return (1.0 + 0.1 * noise).astype(np.float32)
    if name.endswith("e_score_correction_bias"):
        spread = 0.3 if config.scoring_func == "sigmoid" else 2.0 / config.n_routed_experts
        return (spread * noise).astype(np.float32)
    if name.endswith("embed_tokens.weight"):
        # A tied embedding is also the head, which should not blow up the logits.
        return (noise * (shape[1] ** -0.5 if config.tie_word_embeddings else 1.0)).astype(np.float32)
    gain = {"gate": 2.0, "o_proj": 0.7, "down_proj": 0.7}.get(name.split(".")[-2], 1.0)
    scaled: Array = (noise * (gain * shape[-1] ** -0.5)).astype(np.float32)
    return scaled


def quantize_fp8(value: Array, block: int = 128) -> tuple[Array, Array]:
    """(float8 e4m3 weight, float32 scales): the largest magnitude of each 128x128 block becomes 448."""
    rows, columns = value.shape
    scale = np.empty((-(-rows // block), -(-columns // block)), dtype=np.float32)
    out = np.empty(value.shape, dtype=ml_dtypes.float8_e4m3fn)
    for i, j in np.ndindex(*scale.shape):
        part = np.s_[i * block : (i + 1) * block, j * block : (j + 1) * block]
        scale[i, j] = np.abs(value[part]).max() / np.float32(448.0)
        out[part] = np.clip(value[part] / scale[i, j], -448.0, 448.0).astype(ml_dtypes.float8_e4m3fn)
    return out, scale


def write_shards(folder: Path, parts: Sequence[Mapping[str, Array]]) -> None:
    """One ``model.safetensors``, or shards with an index."""
    if len(parts) == 1:
        write_safetensors(folder / "model.safetensors", parts[0])
        return
    names = [f"model-{number:05d}-of-{len(parts):06d}.safetensors" for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        write_safetensors(folder / name, part)
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    total = sum(array.nbytes for part in parts for array in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """A .safetensors file; its header is padded to 8 bytes, as the format advises."""
    header, data = safetensors_header(tensors), b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(framed(header) + data)


def safetensors_header(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The header's JSON for tensors that are stored one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": _DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    return header


def framed(header: Mapping[str, Any] | bytes) -> bytes:
    """Length field and JSON text of a header."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _share_mtp_copies(config: ModelConfig, stored: dict[str, Array]) -> None:
    """An MTP layer's embedding and head are copies of the trunk's, as in the official file."""
    embedding = stored["model.embed_tokens.weight"]
    for layer in config.mtp_layer_ids:
        stored[f"model.layers.{layer}.embed_tokens.weight"] = embedding
        stored[f"model.layers.{layer}.shared_head.head.weight"] = stored.get("lm_head.weight", embedding)


def _split(stored: Mapping[str, Array], scales: Mapping[str, Array], shards: int) -> list[dict[str, Array]]:
    """Near-equal runs of tensors; the scale of a weight goes to the shard after the weight's."""
    parts: list[dict[str, Array]] = [{} for _ in range(shards)]
    for index, (name, array) in enumerate(stored.items()):
        part = index * shards // len(stored)
        parts[part][name] = array
        if f"{name}_scale_inv" in scales:
            parts[(part + 1) % shards][f"{name}_scale_inv"] = scales[f"{name}_scale_inv"]
    return parts
