"""How long a decode step of a cut engine takes at best: bytes, operations and messages of each rank, by arithmetic.

A rank reads its weights and its cache, multiplies, and waits for its messages; nothing of that is taken to overlap but
reading and multiplying. Kernels reach the device's data sheet, so the time is a floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3export.config import ModelConfig
from dsv3export.engine.parallel import Layout, RankPlan, Traffic
from dsv3export.recipe import Recipe
from dsv3export.sizing.devices import Device, MatrixType
from dsv3export.sizing.plan import Workload, matrix_type_of
from dsv3export.sizing.rank_weights import RankWeights, rank_weights
from dsv3export.sizing.ranks import plan_ranks


@dataclass(frozen=True)
class Links:
    """What connects the devices.

    The defaults are those of an HGX machine with H100 or H200: NVLink of 450 GB/s in each direction, one network
    card of 400 Gbit/s for each GPU; the latencies are of small all-reduces and messages, launch included, as one
    would measure them with NCCL.

    Attributes:
        node_ranks: Ranks in one machine.
        node_bandwidth, network_bandwidth: Bytes per second that one device sends, within a machine and between two.
        node_latency, network_latency: Seconds that a message or a collective takes however small it is.
        wire_bytes: Bytes of a number.
    """

    node_ranks: int = 8
    node_bandwidth: float = 450e9
    network_bandwidth: float = 50e9
    node_latency: float = 10e-6
    network_latency: float = 30e-6
    wire_bytes: int = 2


@dataclass(frozen=True)
class StageTime:
    """The time of one pipeline stage for one micro-batch, in seconds.

    Attributes:
        reading, computing: Of the stage's ranks; the larger one counts.
        collectives: All-reduces and the gathering of logits.
        sending: Of the hidden states, or the logits.
        bytes_read: By each rank.
    """

    reading: float
    computing: float
    collectives: float
    sending: float
    bytes_read: int

    @property
    def seconds(self) -> float:
        return max(self.reading, self.computing) + self.collectives + self.sending


@dataclass(frozen=True)
class StepTime:
    """A decode step of the whole batch.

    Attributes:
        micro_batches: How many parts of the batch follow each other through the stages.
        stages: Of one micro-batch.
        ranks: The plan of each rank.
        cache_bytes: Of the sequences, on each rank of a stage.
        fits: Whether weights and cache of every rank fit into the usable part of its device.
    """

    layout: Layout
    batch: int
    micro_batches: int
    stages: tuple[StageTime, ...]
    ranks: tuple[RankPlan, ...]
    cache_bytes: tuple[int, ...]
    fits: bool

    @property
    def seconds(self) -> float:
        """Until each sequence has its next token: every stage once, and the slowest for each further micro-batch."""
        slowest = max(stage.seconds for stage in self.stages)
        if self.micro_batches >= len(self.stages):
            return slowest * self.micro_batches
        return sum(stage.seconds for stage in self.stages) + slowest * (self.micro_batches - 1)

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences."""
        return self.batch / self.seconds


def step_time(
    config: ModelConfig,
    recipe: Recipe,
    layout: Layout,
    device: Device,
    workload: Workload,
    links: Links,
    usable: int,
    mtp: bool = False,
) -> StepTime:
    """Of a decode step of `workload.batch` sequences with `workload.context` tokens.

    The batch goes through a pipeline in as many parts as there are stages, where it has so many sequences.

    Args:
        usable: Bytes of a device that weights and cache may take.
        mtp: Whether the last stage holds the MTP layer, which takes part in the memory only.
    """
    weights = rank_weights(config, recipe, layout, mtp)
    plans = plan_ranks(
        config, recipe.with_cache(workload.cache), layout, [w.total for w in weights], mtp, links.wire_bytes
    )
    micro_batches = min(layout.pp, workload.batch)
    tokens = -(-workload.batch // micro_batches)
    kind = matrix_type_of(config, recipe)
    firsts = range(0, layout.world, layout.stage)
    stages = tuple(
        _stage(config, layout, device, workload, links, plans[rank], weights[rank], tokens, kind) for rank in firsts
    )
    caches = tuple(plan.cache_bytes_per_token * workload.batch * workload.context for plan in plans)
    fits = all(plan.weight_bytes + cache <= usable for plan, cache in zip(plans, caches, strict=True))
    return StepTime(layout, workload.batch, micro_batches, stages, tuple(plans), caches, fits)


def _stage(
    config: ModelConfig, layout: Layout, device: Device, workload: Workload, links: Links, plan: RankPlan,
    weights: RankWeights, tokens: int, kind: MatrixType,
) -> StageTime:  # fmt: skip
    begin, end = plan.layers
    chosen = config.num_experts_per_tok / config.n_routed_experts if config.n_routed_experts else 0.0
    # of each rank's experts as many are read as some token is sent to
    touched = 1 - (1 - chosen) ** tokens
    cache = plan.cache_bytes_per_token * tokens * workload.context
    read = weights.shared + round(weights.experts * touched) + cache
    multiplied = weights.shared_numbers + weights.expert_numbers * chosen
    heads = config.num_attention_heads // layout.tp
    pairs = (end - begin) * heads * workload.context * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    flops = 2 * tokens * (multiplied + pairs)
    times = {True: 0.0, False: 0.0}
    for traffic in plan.traffic:
        times[traffic.op == "send"] += _message(layout, links, plan.rank, traffic, tokens)
    return StageTime(read / device.bandwidth, flops / device.flops[kind], times[False], times[True], read)


def _message(layout: Layout, links: Links, rank: int, traffic: Traffic, rows: int) -> float:
    """Latency and bytes; a gather takes what the first rank receives."""
    near = _within_node(layout, links, rank, traffic)
    latency = links.node_latency if near else links.network_latency
    bandwidth = links.node_bandwidth if near else links.network_bandwidth
    sent = float(traffic.sent_per_row) * rows
    if traffic.op == "gather":
        sent = traffic.payload_per_row * rows * (traffic.ranks - 1)
    return traffic.per_step * latency + sent / bandwidth


def _within_node(layout: Layout, links: Links, rank: int, traffic: Traffic) -> bool:
    if traffic.group is not None:
        members: Sequence[int] = layout.group(rank, traffic.group)
    else:
        members = (rank, 0 if layout.next(rank) is None else rank + layout.stage)
    return len({member // links.node_ranks for member in members}) == 1
