"""Whether the stored tensors are those that the config promises: all there, none too many, shapes and dtypes right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dsv3export.checkpoint.expected import expected_tensors, may_be_fp8
from dsv3export.checkpoint.header import TensorInfo, summary
from dsv3export.config import ModelConfig
from dsv3export.config.json_file import shown
from dsv3export.errors import CheckpointError

FLOATS = ("BF16", "F16", "F32")
FP8 = "F8_E4M3"
SCALE = "_scale_inv"
HEAD = "lm_head.weight"

# Buffers that older programs wrote; every reader computes them.
_HARMLESS = re.compile(r"\.rotary_emb\.inv_freq$")


def is_harmless(name: str) -> bool:
    """Whether a surplus tensor of this name is known to mean nothing."""
    return _HARMLESS.search(name) is not None


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the block scales of a weight: sides divided by the block's, rounded up."""
    return tuple(-(-side // height) for side, height in zip(shape, block, strict=True))


def check_tensors(where: str, config: ModelConfig, stored: Mapping[str, TensorInfo]) -> None:
    """Compares the tensors of a checkpoint with its config.

    Args:
        where: Names the checkpoint in messages.
        config: The config.
        stored: All stored tensors but harmless ones.

    Raises:
        CheckpointError: The first kind of fault there is, with the first three tensors that have it.
    """
    expected = expected_tensors(config)
    if config.tie_word_embeddings and HEAD in stored:
        expected[HEAD] = expected["model.embed_tokens.weight"]
    _check_missing(where, config, expected, stored)
    _refuse("wrong shape", _wrong_shapes(expected, stored))
    _refuse("wrong dtype", _wrong_dtypes(config, expected, stored))
    _check_scales(where, config, expected, stored)
    surplus = [info for name, info in stored.items() if name not in expected and not _is_scale(name, expected)]
    _check_surplus(config, surplus)


def _is_scale(name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in expected


def _check_missing(
    where: str, config: ModelConfig, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, TensorInfo]
) -> None:
    missing = [name for name in expected if name not in stored]
    if not missing:
        return
    mtp = tuple(f"model.layers.{layer}." for layer in config.mtp_layer_ids)
    fix = ""
    if mtp and all(name.startswith(mtp) for name in missing) and not any(name.startswith(mtp) for name in stored):
        fix = "The checkpoint has no MTP layer: set num_nextn_predict_layers to 0 in config.json"
    raise CheckpointError(f"{where}: missing tensors: {summary(missing)}", fix=fix)


def _check_surplus(config: ModelConfig, surplus: list[TensorInfo]) -> None:
    if not surplus:
        return
    last = config.mtp_layer_ids.stop - 1
    layers = [re.match(r"model\.layers\.(\d+)\.", info.name) for info in surplus]
    beyond = any(match and int(match[1][:9]) > last for match in layers)
    fix = f"By config.json the last layer, MTP layers included, is layer {last}" if beyond else ""
    names = summary(info.name for info in surplus)
    raise CheckpointError(f"{surplus[0].file}: tensors that the config has no place for: {names}", fix=fix)


def _wrong_shapes(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, TensorInfo]
) -> Iterable[tuple[TensorInfo, str, str]]:
    for name, shape in expected.items():
        info = stored[name]
        if info.shape != shape:
            yield info, shown(shape), shown(info.shape)


def _wrong_dtypes(
    config: ModelConfig, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, TensorInfo]
) -> Iterable[tuple[TensorInfo, str, str]]:
    for name, shape in expected.items():
        info = stored[name]
        if info.dtype in FLOATS or (info.dtype == FP8 and config.quantization and may_be_fp8(name, shape)):
            continue
        allowed = (*FLOATS, FP8) if config.quantization and may_be_fp8(name, shape) else FLOATS
        note = ""
        if info.dtype == FP8 and not config.quantization:
            note = ", and config.json has no quantization_config"
        yield info, " or ".join(allowed), info.dtype + note


def _check_scales(
    where: str, config: ModelConfig, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, TensorInfo]
) -> None:
    fp8 = [name for name in expected if stored[name].dtype == FP8]
    missing = [f"{name}{SCALE}" for name in fp8 if f"{name}{SCALE}" not in stored]
    if missing:
        raise CheckpointError(f"{where}: missing scales of FP8 weights: {summary(missing)}")
    quantised = set(fp8)
    surplus = [
        info for name, info in stored.items() if _is_scale(name, expected) and name.removesuffix(SCALE) not in quantised
    ]
    if surplus:
        names = summary(info.name for info in surplus)
        raise CheckpointError(f"{surplus[0].file}: scales of weights that are not FP8: {names}")
    if config.quantization is None:
        return
    block = config.quantization.block
    pairs = [(stored[f"{name}{SCALE}"], scale_shape(expected[name], block)) for name in fp8]
    _refuse("wrong shape", ((info, shown(shape), shown(info.shape)) for info, shape in pairs if info.shape != shape))
    _refuse("wrong dtype", ((info, "F32", info.dtype) for info, _ in pairs if info.dtype != "F32"))


def _refuse(fault: str, wrong: Iterable[tuple[TensorInfo, str, str]]) -> None:
    """Raises if there is any (tensor, expected, got)."""
    found = list(wrong)
    if not found:
        return
    info, expected, got = found[0]
    others = summary(info.name for info, _, _ in found[1:])
    fix = f"The same holds of {others}" if others else ""
    raise CheckpointError(f"{info.file}: tensor {shown(info.name, 120)}: {fault}", expected=expected, got=got, fix=fix)
