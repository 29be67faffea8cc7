"""Checkpoint -> engine: the whole pipeline on a page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsv3export import __version__
from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.config.layer_slice import sliced_layers
from dsv3export.engine.manifest import (
    BackendRecord,
    CalibrationRecord,
    CheckpointRecord,
    Compute,
    Manifest,
    Provider,
    WeightEntry,
)
from dsv3export.engine.parallel import Layout, Parallel, plan_digest, rank_folder
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.writer import EngineWriter
from dsv3export.errors import BackendError, RequestError
from dsv3export.graphs.backend import Backend, BackendOptions, Compiled, TensorRTOptions
from dsv3export.graphs.backends import open_backend
from dsv3export.graphs.build_key import build_key
from dsv3export.graphs.buildable import check_calibration
from dsv3export.graphs.calibration import Calibration, one_thread
from dsv3export.graphs.calibration_text import calibration_record, calibration_sequences
from dsv3export.graphs.memory_plan import MemoryPlan, plan_memory
from dsv3export.graphs.packer import Packer
from dsv3export.graphs.passes.quantise import BITS
from dsv3export.graphs.rewrite import merged_weights
from dsv3export.graphs.shard.ranks import RankGraphs, lowered_ranks
from dsv3export.graphs.trace import Part
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_plan import plan_weights
from dsv3export.graphs.weight_units import plan_units
from dsv3export.progress import NoProgress, Progress
from dsv3export.recipe import LAYER_COMPONENTS, Recipe
from dsv3export.runtime.threads import default_threads
from dsv3export.sizing.parallel import check_layout
from dsv3export.sizing.ranks import plan_ranks


@dataclass(frozen=True)
class BuildReport:
    """What a build made.

    Attributes:
        manifest: The engine's.
        engine_bytes: Its size on disk.
        seconds: How long it took.
        resumed_bytes: How many bytes of weights an interrupted build had left.
        memory_bytes: The resident memory that it was planned to take at most.
        requantised: The integer formats that weights stored as FP8 were rounded to once more; empty where none was.
        ranks: The manifests of the ranks' parts, if it is cut.
    """

    manifest: Manifest
    engine_bytes: int
    seconds: float
    resumed_bytes: int
    memory_bytes: int
    requantised: tuple[str, ...] = ()
    ranks: tuple[Manifest, ...] = ()


def build_engine(
    checkpoint_path: str | Path,
    out: str | Path,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    recipe: str | Path | None = None,
    force: bool = False,
    copy_weights: bool = False,
    progress: Progress | None = None,
    calibration: str | Path | None = None,
    layers: str | None = None,
    cache_dtype: str | None = None,
    max_memory: int | None = None,
    threads: int | None = None,
    provider: Provider = "cpu",
    compute: Compute | None = None,
    tensorrt: TensorRTOptions | None = None,
    mtp: bool = True,
    layout: Layout | None = None,
) -> BuildReport:
    """Build an engine directory from a checkpoint directory.

    1. open      the checkpoint: config, index and every header are checked before anything else
    2. trace     the reference into graphs, of the trunk and of the MTP layer, one function per layer kind; verify them
    3. quantise  each component to the precision that the recipe gives it, then the latent cache
    4. lower     the dsv3 ops and the weight layouts to the backend
    5. plan      which weights are written and which stay in the checkpoint, in what units they are made, and what
                 memory that takes
    6. write     weights, several units at once, then the graph, tokenizer and manifest; the engine appears whole at
                 the end; a calibration text runs through the float32 graph along with them, layer by layer

    A build that was killed or interrupted leaves ``<out>.partial``; the same build goes on from there. Equal inputs
    give equal bytes, whatever `max_memory` and `threads` are and however often it was interrupted; TensorRT's own
    engine files apart, which differ a little from build to build.

    Args:
        precision: A preset recipe: fp32, bf16, fp8, int8 or int4.
        recipe: A recipe file; it takes the place of `precision`.
        copy_weights: Copy also the weights that could stay in the checkpoint.
        force: Replace an engine that exists at `out`.
        calibration: A text file. Integer components are then fitted to what they compute on it (method gptq), unless
            the recipe names another method.
        layers: Build a part of the model, for measuring memory and speed at true shapes: embedding, the decoder layers
            of this slice (``"3:5"`` for layers 3 and 4), head. What such an engine writes makes no sense.
        cache_dtype: What the latent cache is kept in: fp32, bf16, f16 or fp8; over what the recipe says.
        max_memory: Bound of the process's resident memory in bytes; None = 3 GB, or the least possible if that is
            more.
        threads: How many units are made at once; None = one per physical core.
        provider: The execution provider that the engine is made for: "cpu" or "cuda".
        compute: What products with integer and fp8 weights are computed in on CUDA, "bf16" (the default) or "f16"; all
            that TensorRT computes, "bf16" unless all weights are of another float type.
        tensorrt: What the TensorRT backends want to know beforehand.
        mtp: Take the MTP layer along, where the checkpoint has one, the engine all layers and the backend a way to run
            it: a graph of its own, which the runtime opens for drafts only. Of several MTP layers the first is taken.
        layout: Cut the engine for several ranks; step 3 is then followed by `graphs.shard`, and each rank has a folder
            of its own, an engine that needs no other. None or a world of one rank: an engine that one process runs.

    Raises:
        UserError: Bad input, a combination that cannot be built, a full disk, a bound of memory that is too low; `out`
            is then as it was before.
    """
    started = time.monotonic()
    progress = progress or NoProgress()
    calibrated = calibration is not None
    chosen = Recipe.from_toml(recipe, calibrated) if recipe is not None else Recipe.for_precision(precision, calibrated)
    if cache_dtype is not None:
        chosen = chosen.with_cache(cache_dtype)
    options = BackendOptions(provider, compute, cache_dtype is not None, tensorrt or TensorRTOptions())
    built_for = open_backend(backend, options)
    chosen = built_for.adapted(chosen)
    check_calibration(chosen, calibrated)
    checkpoint = Checkpoint.open(Path(checkpoint_path))
    built_for.check(chosen, checkpoint.config)
    chosen.check_layers(checkpoint.config.num_hidden_layers)
    parts = None if layers is None else sliced_layers(layers, checkpoint.config.num_hidden_layers)
    layout = layout or Layout()
    if layout.world > 1:
        _check_ranks(layout, chosen, checkpoint.config, built_for, backend, layers)
    with_mtp = mtp and parts is None and built_for.takes_mtp and checkpoint.config.num_nextn_predict_layers > 0
    model_parts: tuple[Part, ...] = ("trunk", "mtp") if with_mtp else ("trunk",)
    fitted, text, sequences = None, None, None
    if calibration is not None:
        sequences = calibration_sequences(Path(calibration), checkpoint)
        fitted, text = Calibration(checkpoint, sequences), calibration_record(Path(calibration), sequences)
    ranks = lowered_ranks(checkpoint, chosen, built_for, model_parts, layout, parts, progress)
    exprs: dict[str, WeightExpr] = {}
    plan: list[PlannedWeight] = []
    checked: set[str] = set()
    for each in ranks:
        merged = merged_weights(each.graphs.values())
        planned = plan_weights(list(each.graphs.values()), checkpoint, copy_weights, checked)
        plan += [replace(weight, folder=each.folder) for weight in planned]
        exprs |= {weight.key: merged[weight.name] for weight in plan[-len(planned) :]}
    units = plan_units(plan, exprs, Packer(checkpoint, fitted), fitted)
    memory = plan_memory(units, threads or default_threads(), max_memory, fitted)
    key = build_key(checkpoint, plan, exprs, units, sequences)
    with EngineWriter(Path(out), force, checkpoint, key) as writer:
        compiled = _compiled(built_for, ranks, chosen, checkpoint.config, progress)
        progress.note(_announcement(plan, memory))
        with one_thread():
            entries = writer.write_weights(plan, units, memory.limits, progress)
        writer.copy_tokenizer(checkpoint.path)
        template = _manifest(checkpoint, chosen, compiled[0].record, parts, text)
        manifests = _finish(writer, ranks, compiled, template, _by_folder(plan, entries), layout, key)
    return BuildReport(
        manifests[0],
        sum(map(_disk_bytes, manifests)),
        time.monotonic() - started,
        writer.resumed_bytes,
        memory.expected,
        _requantised(checkpoint, chosen),
        tuple(manifests[1:]),
    )


def _compiled(
    backend: Backend, ranks: Sequence[RankGraphs], recipe: Recipe, config: ModelConfig, progress: Progress
) -> list[Compiled]:
    if ranks[0].rank is None:
        return [backend.compile(ranks[0].graphs, recipe, config, progress)]
    return [backend.compile_rank(each.graphs, recipe, each.received, each.sent) for each in ranks]


def _by_folder(plan: Sequence[PlannedWeight], entries: Sequence[WeightEntry]) -> dict[str, list[WeightEntry]]:
    tables: dict[str, list[WeightEntry]] = {}
    for weight, entry in zip(plan, entries, strict=True):
        tables.setdefault(weight.folder, []).append(entry)
    return tables


def _finish(
    writer: EngineWriter, ranks: Sequence[RankGraphs], compiled: Sequence[Compiled], template: Manifest,
    tables: Mapping[str, Sequence[WeightEntry]], layout: Layout, key: str,
) -> list[Manifest]:  # fmt: skip
    """Write the graphs and the manifests: that of the engine, then those of its ranks, if it is cut."""
    parts = []
    for each, made in zip(ranks, compiled, strict=True):
        folder = f"{each.folder}/" if each.folder else ""
        weights = tables[each.folder]
        files = made.files(weights, writer.roots)
        records = {name: writer.write_file(f"{folder}{file.name}", file.data) for name, file in files}
        graphs = {name: replace(record, file=record.file.removeprefix(folder)) for name, record in records.items()}
        if made.holds_weights:
            writer.drop_weights(weights)
        parts.append(replace(template, graphs=graphs, weights=() if made.holds_weights else tuple(weights)))
    if layout.world == 1:
        return [writer.finish(parts[0])]
    sizes = [sum(entry.nbytes for entry in part.weights) for part in parts]
    with_mtp = "mtp" in ranks[-1].graphs
    plans = tuple(plan_ranks(ModelConfig.from_dict(template.model), template.recipe, layout, sizes, with_mtp))
    whole = Parallel(layout, None, plan_digest(layout, plans, key), plans)
    finished = [
        writer.finish_rank(rank_folder(rank), replace(part, parallel=replace(whole, rank=rank)))
        for rank, part in enumerate(parts)
    ]
    return [writer.finish(replace(template, parallel=whole)), *finished]


def _disk_bytes(manifest: Manifest) -> int:
    graphs = sum(graph.size for graph in manifest.graphs.values())
    return graphs + sum(file.size for file in manifest.files.values())


def _check_ranks(
    layout: Layout, recipe: Recipe, config: ModelConfig, built_for: Backend, backend: str, layers: str | None
) -> None:
    """Raises UserError where an engine cannot be cut by a layout."""
    if not built_for.takes_ranks:
        raise BackendError(
            f"{layout.describe()} on {backend}", expected="backend onnxruntime, which alone is cut for several ranks"
        )
    if layers is not None:
        raise RequestError("--layers", expected="a whole model, to be cut for several ranks", got=layers)
    check_layout(config, recipe, layout)


def _announcement(plan: Sequence[PlannedWeight], memory: MemoryPlan) -> str:
    """What is about to happen, on one line."""
    stored = sum(weight.nbytes for weight in plan if not weight.reference)
    threads = memory.limits.threads
    return (
        f"{_size(stored)} of weights to write, on {threads} thread{'s' if threads > 1 else ''}, "
        f"with {_size(memory.expected)} of memory at most"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    backend: BackendRecord,
    layers: tuple[int, ...] | None,
    calibration: CalibrationRecord | None,
) -> Manifest:
    """All but the graphs and the weights."""
    return Manifest(
        producer=f"dsv3export {__version__}",
        model=checkpoint.config.raw,
        recipe=recipe,
        backend=backend,
        graphs={},
        checkpoint=CheckpointRecord.from_fingerprint(checkpoint.path, checkpoint.fingerprint()),
        weights=(),
        layers=layers,
        calibration=calibration,
    )


def _requantised(checkpoint: Checkpoint, recipe: Recipe) -> tuple[str, ...]:
    """An FP8 checkpoint has the layers' projections and experts in FP8, embedding and head in BF16."""
    if checkpoint.config.quantization is None:
        return ()
    layers = range(checkpoint.config.num_hidden_layers)
    formats = {recipe.scheme(part, layer, len(layers)).format for part in LAYER_COMPONENTS for layer in layers}
    return tuple(sorted(formats & BITS.keys()))
