"""A decode step of four layers at DeepSeek-V3's true shapes, through the executor, captured as one CUDA graph.

Layers 2 to 5, one dense and three with experts, with the embedding and the head; FP8 weights (random: 37 GB),
activations in bfloat16 and rounded to FP8 where the products take that, a bfloat16 cache. Its floor is the sum of its
parts' floors. Besides torch and Triton it needs the packages of `build`, for the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from benchmarks.gpu.limits import Limits
from benchmarks.gpu.measure import Bench, Result
from benchmarks.gpu.shapes import TINY_MODEL, Case, Floor
from benchmarks.gpu.work import Source
from dsv3export.config import ModelConfig
from dsv3export.graphs.executor import quantised_graph
from dsv3export.graphs.interpreter import run
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.triton_kernels import Activations, TritonKernels
from dsv3export.graphs.values import is_weight
from dsv3export.plugins.kernels.checks import distance
from dsv3export.presets import preset
from dsv3export.recipe import Recipe
from dsv3export.rope import inverse_frequencies

LAYERS = range(2, 6)
_ROUNDED = ("dense_mlp", "shared_experts", "routed_experts")
_TOLERANCE = 4e-2
_SMALL = {
    "hidden_size": 128, "intermediate_size": 160, "moe_intermediate_size": 64, "num_attention_heads": 2,
    "kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "vocab_size": 128,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A step that is ready to run."""

    config: ModelConfig
    graph: GraphWithWeights
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]

    def run(self, kernels: TritonKernels | None, seen: dict[str, Tensor] | None = None) -> Tensor:
        """The logits; `seen` gets every value."""
        with torch.inference_mode():
            keep = None if seen is None else seen.__setitem__
            return run(self.graph.model, self.inputs, self.weights, keep, kernels)["logits"]


def step_of(case: Case, bench: Bench) -> Step:
    """The graph and random weights, caches and tokens on the device."""
    config = preset("deepseek_v3")
    if bench.model is TINY_MODEL:
        config = replace(config, **_SMALL)  # type: ignore[arg-type]
    recipe = _recipe()
    graph = narrow_cache(quantised_graph(config, "trunk", recipe, "BF16", LAYERS), recipe.cache, config)
    source, batch, length = Source(bench.device), case.number("batch"), case.number("length")
    weights = dict(_weights(graph, config, source))
    inputs = {
        "input_ids": torch.arange(batch, device=bench.device)[:, None] % config.vocab_size,
        "start": torch.full((batch,), length - 1, device=bench.device),
        "logit_rows": torch.arange(batch, device=bench.device),
        **{f"latent_cache.{layer}": source.normal(batch, length, config.latent_width) for layer in range(len(LAYERS))},
    }
    return Step(config, graph, weights, inputs)


def _recipe() -> Recipe:
    document = Recipe.for_precision("fp8").with_cache("bf16").to_json()
    for name in _ROUNDED:
        document["components"][name]["activations"] = "1x128"
    return Recipe.from_json(document)


def _weights(graph: GraphWithWeights, config: ModelConfig, source: Source) -> Iterator[tuple[str, Tensor]]:
    shapes = {str(v.name): (str(v.dtype), tuple(v.shape or ())) for v in graph.model.graph.inputs if is_weight(v)}
    for name, (dtype, shape) in shapes.items():
        sizes = [int(size) for size in shape if isinstance(size, int)]
        if dtype == "FLOAT8E4M3FN":
            yield from zip((name, f"{name}_scale_inv"), source.fp8(*sizes), strict=True)
        elif name == "rotary.inverse_frequencies":
            yield name, torch.from_numpy(inverse_frequencies(config)).to(source.device)
        elif len(sizes) == 1:
            yield name, torch.full(sizes, 0.0 if "bias" in name else 1.0, device=source.device)
        elif not name.endswith("_scale_inv"):
            number = source.normal(*sizes) * sizes[-1] ** -0.5
            yield name, number.to(torch.float32 if dtype == "FLOAT" else torch.bfloat16)


def measured_step(case: Case, bench: Bench, limits: Limits) -> Result:
    """Checked and timed: on a CPU against the definitions, on a GPU a replay against launching one by one."""
    step = step_of(case, bench)
    on_gpu = bench.device.type == "cuda"
    activations: Activations = "BF16" if on_gpu else "F32"
    kernels = TritonKernels(bench.run, bench.target, bench.device, activations, bench.processors, bench.tuning)
    step = replace(step, inputs=kernels.place(step.inputs))
    seen: dict[str, Tensor] = {}
    eager = step.run(kernels, seen).float().clone()
    hit = [int(value.unique().numel()) for name, value in seen.items() if name.endswith(".mlp.gate.ids")]
    replayed: list[Tensor] = []

    def once(_: int) -> None:
        replayed[:] = [step.run(kernels)]

    times = bench.timer(once, 1)
    reference = eager if on_gpu else _as_defined(step)
    floors = list(part_floors(step, case, hit))
    total = Floor(sum(floor.bytes for floor in floors), sum(floor.flops for floor in floors), "fp8")
    seconds, rate = times.microseconds * 1e-6, limits.rates.get("fp8", math.nan)
    return Result(
        case.kernel,
        case.shape,
        distance(replayed[0].float(), reference),
        _TOLERANCE,
        total,
        times,
        1e6 * sum(floor.seconds(limits.bandwidth, limits.rates) for floor in floors),
        total.bytes / seconds / limits.bandwidth,
        total.flops / seconds / rate,
        1,
        True,
    )


def _as_defined(step: Step) -> Tensor:
    """The same step by the ops' definitions, in float32; the caches hold what the first run wrote."""
    return step.run(None).float()


def part_floors(step: Step, case: Case, experts_hit: list[int]) -> Iterator[Floor]:
    """Each weight read once (of the experts those that were chosen), each layer's attention, in this order."""
    config, batch = step.config, case.number("batch")
    heads, length = config.num_attention_heads, case.number("length")
    for name, weight in step.weights.items():
        if ".mlp.experts." in name or name.endswith("_scale_inv") or weight.dim() < 2 or "embed" in name:
            continue
        rows, inner = weight.shape
        matrix = "fp8" if weight.dtype == torch.float8_e4m3fn else "bf16"
        yield Floor(weight.nbytes + 2 * batch * (rows + inner), 2 * batch * rows * inner, matrix)
    for hit in experts_hit:
        banks = [weight for name, weight in step.weights.items() if f".{_first(step)}.mlp.experts." in name]
        expert = sum(bank[0].nbytes for bank in banks)
        numbers = sum(prod(bank.shape[1:]) for bank in banks if bank.dtype == torch.float8_e4m3fn)
        ends = 4 * batch * config.hidden_size
        yield Floor(hit * expert + ends, 2 * batch * config.num_experts_per_tok * numbers, "fp8")
    width, latent = config.latent_width, config.kv_lora_rank
    for _ in LAYERS:
        ends = 2 * batch * heads * (width + latent)
        yield Floor(batch * length * width * 2 + ends, 2 * batch * heads * length * (width + latent), "bf16")


def _first(step: Step) -> str:
    """The number of a layer that has experts."""
    return next(name.split(".")[2] for name in step.weights if ".mlp.experts." in name)
