"""What fits on a device, how many devices a model takes, and the fastest that they could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsv3export.config import ModelConfig
from dsv3export.errors import RequestError
from dsv3export.recipe import CacheFormat, Component, Recipe
from dsv3export.sizing.devices import Device, MatrixType
from dsv3export.sizing.term import Term, total
from dsv3export.sizing.weights import weight_terms
from dsv3export.sizing.work import activation_terms, cache_term, decode_flops, prefill_flops, step_bytes

# Of a device's memory, for the driver, kernels, workspaces and fragmentation.
RESERVE = 0.1


@dataclass(frozen=True)
class Workload:
    """What is asked of the devices.

    Attributes:
        batch: Sequences that are decoded at once.
        context: Tokens that each of them has, prompt included.
        prompt: Tokens of each prompt.
        cache: What the latent cache is kept in.
    """

    batch: int = 1
    context: int = 4096
    prompt: int = 1024
    cache: CacheFormat = "bf16"


@dataclass(frozen=True)
class Floor:
    """The least time that something takes.

    Attributes:
        seconds: The larger of bytes / bandwidth and operations / rate.
        tokens_per_second: Of all sequences together.
        limit: Which of the two it is.
        bytes, flops: What it was computed from.
    """

    seconds: float
    tokens_per_second: float
    limit: Literal["bandwidth", "compute"]
    bytes: tuple[Term, ...]
    flops: tuple[Term, ...]


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes.

    Attributes:
        weights, cache, activations: What has to lie in memory.
        usable: Of one device, without the reserve.
        devices: How many devices the floors are of.
        needed: The least devices, weights and sequences split evenly (data-parallel attention, experts by range).
        needed_cache_everywhere: The same where each device holds the cache of every sequence (tensor parallel: a
            latent row belongs to all heads); None where that does not fit whatever the number.
        largest_batch: Sequences of `context` tokens that fit on `devices`; 0 where the weights alone do not fit.
        longest_context: Tokens of each of `batch` sequences that fit, at most the model's own bound.
        matrix_type: Which rate of the device was used.
        decode, prefill: Floors on `devices`.
    """

    device: Device
    workload: Workload
    weights: tuple[Term, ...]
    cache: Term
    activations: tuple[Term, ...]
    usable: int
    devices: int
    needed: int
    needed_cache_everywhere: int | None
    largest_batch: int
    longest_context: int
    matrix_type: MatrixType
    decode: Floor
    prefill: Floor


def make_plan(
    config: ModelConfig, recipe: Recipe, device: Device, workload: Workload, devices: int | None = None
) -> Plan:
    """Works out a plan.

    Args:
        devices: For how many devices; None takes as many as are needed.

    Raises:
        RequestError: The sequences are longer than the model's positions, or one layer's intermediates fill a device.
    """
    _check(config, workload)
    recipe.check_layers(config.num_hidden_layers)
    batch, context = workload.batch, workload.context
    weights = tuple(weight_terms(config, recipe))
    cache = cache_term(config, batch, context, workload.cache)
    activations = tuple(activation_terms(config, batch, context))
    usable, held = usable_bytes(device), total(activations)
    room = usable - held
    if room <= 0:
        raise RequestError(
            f"device {device.name}",
            expected=f"more than the {held:,} bytes that intermediates take",
            got=f"{usable:,} usable bytes",
        )
    needed = -(-(total(weights) + cache.value) // room)
    count = devices or needed
    free = max(0, count * room - total(weights))
    per_token = cache.value // (batch * context)
    filled = cache_term(config, batch, workload.prompt, workload.cache)
    matrix_type = matrix_type_of(config, recipe)
    return Plan(
        device=device,
        workload=workload,
        weights=weights,
        cache=cache,
        activations=activations,
        usable=usable,
        devices=count,
        needed=needed,
        needed_cache_everywhere=-(-total(weights) // (room - cache.value)) if room > cache.value else None,
        largest_batch=free // (per_token * context),
        longest_context=min(config.max_position_embeddings, free // (per_token * batch)),
        matrix_type=matrix_type,
        decode=_floor(
            device, count, matrix_type, batch,
            step_bytes(config, weights, batch, cache),
            decode_flops(config, batch, context),
        ),
        prefill=_floor(
            device, count, matrix_type, batch * workload.prompt,
            step_bytes(config, weights, batch * workload.prompt, filled),
            prefill_flops(config, batch, workload.prompt),
        ),
    )  # fmt: skip


def usable_bytes(device: Device) -> int:
    """Of its memory, without the reserve."""
    return int(device.memory * (1 - RESERVE))


def _check(config: ModelConfig, workload: Workload) -> None:
    longest = config.max_position_embeddings
    for name, tokens in (("context", workload.context), ("prompt", workload.prompt)):
        if tokens > longest:
            raise RequestError(name, expected=f"at most the model's {longest} positions", got=str(tokens))
    if workload.prompt > workload.context:
        raise RequestError("prompt", expected=f"at most the context of {workload.context}", got=str(workload.prompt))


def matrix_type_of(config: ModelConfig, recipe: Recipe) -> MatrixType:
    """The rate that most operations may run at: that of FP8 where weights and activations are, as in training."""
    component: Component = "routed_experts" if config.n_routed_experts else "dense_mlp"
    return "fp8" if recipe.components[component].format == "fp8" else "bf16"


def _floor(
    device: Device, devices: int, matrix_type: MatrixType, tokens: int, read: list[Term], computed: list[Term]
) -> Floor:
    reading = total(read) / (device.bandwidth * devices)
    computing = total(computed) / (device.flops[matrix_type] * devices)
    seconds = max(reading, computing)
    limit: Literal["bandwidth", "compute"] = "bandwidth" if reading >= computing else "compute"
    return Floor(seconds, tokens / seconds, limit, tuple(read), tuple(computed))
