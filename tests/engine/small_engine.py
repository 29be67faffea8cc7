"""A small engine for the tests of the format: no real graph, three weights of its own, two in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsv3export.checkpoint import Checkpoint
from dsv3export.dtypes import NUMPY
from dsv3export.engine.manifest import BackendRecord, CheckpointRecord, GraphRecord, Manifest, WeightEntry
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.writer import EngineWriter
from dsv3export.recipe import Recipe
from tests.support.whole_weights import whole

REFERENCED = "model.layers.1.post_attention_layernorm.weight"
EXPERTS = tuple(f"model.layers.2.mlp.experts.{expert}.up_proj.weight" for expert in range(4))


def small_plan(source: Checkpoint) -> list[PlannedWeight]:
    reference = source.tensors[REFERENCED]
    experts = tuple(source.tensors[name] for name in EXPERTS)
    bank_shape = (len(experts), *experts[0].shape)
    return [
        PlannedWeight("bytes", "U8", (3, 5), ("a", "b"), "packed"),
        PlannedWeight("norm", reference.dtype, reference.shape, (REFERENCED,), "as_stored", (reference,)),
        PlannedWeight("matrix", "F32", (4, 6), ("c",), "transposed"),
        PlannedWeight("scalar", "BF16", (), (), "constant"),
        PlannedWeight("bank", experts[0].dtype, bank_shape, EXPERTS, "as_stored", experts),
    ]


def produce(weight: PlannedWeight) -> np.ndarray[Any, Any]:
    count = int(np.prod(weight.shape))
    return np.arange(count).reshape(weight.shape).astype(NUMPY[weight.dtype])


def stored(weight: PlannedWeight, source: Checkpoint) -> np.ndarray[Any, Any]:
    """The array of a weight that the plan leaves in the checkpoint."""
    arrays = [source.array(tensor.name) for tensor in weight.reference]
    return arrays[0] if len(arrays) == 1 else np.stack(arrays)


def small_manifest(source: Checkpoint, graph: GraphRecord, table: list[WeightEntry]) -> Manifest:
    return Manifest(
        producer="dsv3export test",
        model=source.config.raw,
        recipe=Recipe.for_precision("fp32"),
        backend=BackendRecord("onnxruntime", "1.32.0", 24),
        graphs={"trunk": graph},
        checkpoint=CheckpointRecord.from_fingerprint(source.path, source.fingerprint()),
        weights=tuple(table),
    )


def build_small_engine(out: Path, checkpoint: Path, force: bool = False) -> Manifest:
    source = Checkpoint.open(checkpoint)
    plan = small_plan(source)
    with EngineWriter(out, force=force, checkpoint=source) as writer:
        graph = writer.write_file("graph/trunk.onnx", b"a graph")
        table = writer.write_weights(plan, whole(plan, produce))
        writer.copy_tokenizer(checkpoint)
        return writer.finish(small_manifest(source, graph, table))
