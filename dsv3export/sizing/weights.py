"""The bytes of an engine's weights, from config and recipe alone: no trace, no checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dsv3export.checkpoint.expected import expected_tensors
from dsv3export.config import ModelConfig
from dsv3export.model_size import tensor_part
from dsv3export.recipe import COMPONENTS, Component, Recipe, Scheme
from dsv3export.sizing.term import Term

FP8_BLOCK = 128
_SCALE_BYTES = 4
# Integer scales of whole rows are stored once per so many columns.
CHANNEL_GROUP = 128
_BYTES = {"fp32": 4, "bf16": 2, "f16": 2}
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    part: str
    layer: int | None


def weight_terms(config: ModelConfig, recipe: Recipe) -> list[Term]:
    """Bytes of the trunk's weights by part (the names of `model_size.ParameterCount.by_component`), scales included.

    As ONNX Runtime engines store them. Norms and routers are float32 at every precision. MTP modules are not counted:
    a run without drafts does not load them.
    """
    numbers: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for tensor in _tensors(config):
        numbers[tensor.part] = numbers.get(tensor.part, 0) + math.prod(tensor.shape)
        sizes[tensor.part] = sizes.get(tensor.part, 0) + _nbytes(tensor, config, recipe)
    return [Term(part, size, _formula(numbers[part], size)) for part, size in sizes.items()]


def weight_bytes_by_layer(config: ModelConfig, recipe: Recipe) -> dict[tuple[str, int | None], int]:
    """The same bytes by part and decoder layer; None is the layer of what is in none."""
    found: dict[tuple[str, int | None], int] = {}
    for tensor in _tensors(config):
        place = tensor.part, tensor.layer
        found[place] = found.get(place, 0) + _nbytes(tensor, config, recipe)
    return found


def _formula(parameters: int, size: int) -> str:
    return f"{parameters:,} parameters x {size / parameters:.4g} bytes"


def _tensors(config: ModelConfig) -> Iterator[_Tensor]:
    shapes = expected_tensors(config)
    if config.tie_word_embeddings:
        # The head has a scheme of its own, so an engine holds its own copy of the table.
        shapes = {**shapes, "lm_head.weight": shapes["model.embed_tokens.weight"]}
    for name, shape in shapes.items():
        prefix, _, rest = name.removeprefix("model.").partition(".")
        layer = int(rest.partition(".")[0]) if prefix == "layers" else None
        if layer is None or layer < config.num_hidden_layers:
            yield _Tensor(name, shape, tensor_part(name), layer)


def _nbytes(tensor: _Tensor, config: ModelConfig, recipe: Recipe) -> int:
    components: Mapping[str, Component] = {component: component for component in COMPONENTS}
    if tensor.part not in components or len(tensor.shape) == 1:
        return math.prod(tensor.shape) * _BYTES["fp32"]
    scheme = recipe.scheme(components[tensor.part], tensor.layer, config.num_hidden_layers)
    rows, columns = tensor.shape
    if scheme.format in _BITS and tensor.name.endswith(".kv_b_proj.weight"):
        return up_projection_bytes(config)
    return matrix_bytes(rows, columns, scheme)


def matrix_bytes(rows: int, columns: int, scheme: Scheme) -> int:
    """Bytes of a weight matrix at a scheme: its numbers, and float32 scales and packed zero points where it has any."""
    if scheme.format in _BYTES:
        return rows * columns * _BYTES[scheme.format]
    if scheme.format == "fp8":
        return rows * columns + -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK) * _SCALE_BYTES
    bits, group = _BITS[scheme.format], scheme.group_size or CHANNEL_GROUP
    groups = -(-columns // group)
    zero_points = 0 if scheme.symmetric else -(-groups * bits // 8)
    return rows * (groups * group * bits // 8 + groups * _SCALE_BYTES + zero_points)


def up_projection_bytes(config: ModelConfig) -> int:
    """kv_b of an integer scheme: W^UK and W^UV in 8 bits, a scale per column of each head's."""
    heads, latent = config.num_attention_heads, config.kv_lora_rank
    key, value = config.qk_nope_head_dim, config.v_head_dim
    return heads * ((key + value) * latent + (latent + value) * _SCALE_BYTES)
