"""``quantization_config``: DeepSeek's FP8 block scaling is the one quantisation that a checkpoint may have."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3export.config.fields import Fields

BLOCK = (128, 128)


@dataclass(frozen=True)
class Fp8Quantization:
    """Weights in float8 e4m3, one float32 scale per `block` (rows, columns) of each."""

    block: tuple[int, int] = BLOCK
    scale_fmt: str | None = None
    """"ue8m0" where scales are powers of two (DeepSeek-V3.1); they are stored as float32 all the same."""


def read_quantization(fields: Fields) -> Fp8Quantization | None:
    """The checkpoint's quantisation, None if it has none.

    Raises:
        ConfigError: Any other method, number format, block size or activation scheme.
    """
    table = fields.table("quantization_config")
    if table is None:
        return None
    table.choice("quant_method", ("fp8",))
    table.choice("fmt", ("e4m3",), default="e4m3")
    table.choice("activation_scheme", ("dynamic",), default="dynamic")
    table.choice("expert_dtype", ("fp8",), default="fp8")
    block = table.values.get("weight_block_size")
    if block != list(BLOCK) or any(type(side) is not int for side in block):
        raise table.error("weight_block_size", f"[{BLOCK[0]}, {BLOCK[1]}]")
    scale_fmt = table.choice("scale_fmt", ("ue8m0", "float"), default="float")
    return Fp8Quantization(scale_fmt=None if scale_fmt == "float" else scale_fmt)
