"""The toy model cut by hand over stages (a layer each) and slices (partial means, parts of the vocabulary).

Segment `first` has layer 0 and leaves a share of the mean on each rank, which they add up; segment `second` adds layer
1 and has a slice of the head, whose logits are gathered.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dsv3export import __version__
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.manifest import BackendRecord, CheckpointRecord, Manifest
from dsv3export.engine.parallel import Layout, Parallel, RankPlan, plan_digest, rank_folder
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.segments import AllReduce, Gather, Recv, Run, SegmentPart, SegmentProgram, Send, Step
from dsv3export.engine.writer import EngineWriter
from dsv3export.recipe import Recipe
from tests.runtime.toy_model import WIDTH, weights
from tests.support.whole_weights import whole

_SHARES = {1: (1.0,), 2: (0.25, 0.75)}

_POSITIONS = """
    zero = Constant <value_ints=[0]> ()
    one = Constant <value_ints=[1]> ()
    two = Constant <value_ints=[2]> ()
    scalar0 = Constant <value_int=0> ()
    scalar1 = Constant <value_int=1> ()
    length = Shape <start=1, end=2> (input_ids)
    length0 = Squeeze (length)
    offsets = Range (scalar0, length0, scalar1)
    start2 = Unsqueeze (start, one)
    positions = Add (start2, offsets)
    positionsf = Cast <to=1> (positions)
    eighth = Constant <value_float=0.125> ()
    onef = Constant <value_float=1.0> ()
    slope = Mul (positionsf, eighth)
    scale = Add (slope, onef)
    scale3 = Unsqueeze (scale, two)
    embedded = Gather (embedding, input_ids)
    fresh = Mul (embedded, scale3)
    "latent_cache.{layer}.updated" = TensorScatter <axis=1> ("latent_cache.{layer}", fresh, start)
"""
_FIRST = """
    most = ReduceMax <keepdims=1> (start)
    longest = Add (most, length)
    seen = Slice ("latent_cache.{layer}.updated", zero, longest, one)
    longest0 = Squeeze (longest)
    keys = Range (scalar0, longest0, scalar1)
    positions3 = Unsqueeze (positions, two)
    visible = LessOrEqual (keys, positions3)
    visiblef = Cast <to=1> (visible)
    summed = MatMul (visiblef, seen)
    count = Add (positionsf, onef)
    count3 = Unsqueeze (count, two)
    mean = Div (summed, count3)
    share = Constant <value_float={share}> ()
    mixed = Mul (mean, share)
"""
_SECOND = """
    final_hidden = Add (mixed, fresh)
    flat_shape = Constant <value_ints=[-1, {width}]> ()
    flat = Reshape (final_hidden, flat_shape)
    picked = Gather (flat, logit_rows)
    product = MatMul (picked, head)
    head_scale = Constant <value_float=3.0> ()
    logits = Mul (product, head_scale)
"""


def _model(inputs: str, outputs: str, body: str, initializers: dict[str, tuple[int, ...]]) -> bytes:
    import onnx
    from onnx import parser

    text = f'<ir_version: 11, opset_import: ["" : 24]> segment ({inputs}) => ({outputs}) {{{body}}}'
    model = parser.parse_model(text)
    for name, shape in initializers.items():
        tensor = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights/BY_REFERENCE")
    return bytes(model.SerializeToString())


def _cache(layer: int, suffix: str = "") -> str:
    return f'float[B,T,{WIDTH}] "latent_cache.{layer}{suffix}"'


def _graphs(layout: Layout, rank: int, vocab: int) -> dict[str, bytes]:
    p, _, t = layout.coordinates(rank)
    graphs, ids = {}, "int64[B,S] input_ids, int64[B] start"
    if p == 0:
        body = (
            (_POSITIONS + _FIRST).format(layer=0, share=_SHARES[layout.tp][t]).replace("embedding", "first_embedding")
        )
        outputs = f"float[B,S,{WIDTH}] mixed, {_cache(0, '.updated')}"
        graphs["first"] = _model(f"{ids}, {_cache(0)}", outputs, body, {"first_embedding": (vocab, WIDTH)})
    if p == layout.pp - 1:
        layer = 0 if layout.pp == 2 else 1
        body = (_POSITIONS + _SECOND).format(layer=layer, width=WIDTH).replace("embedding", "second_embedding")
        part = len(_columns(layout, t, vocab))
        inputs = f"{ids}, int64[R] logit_rows, float[B,S,{WIDTH}] mixed, {_cache(layer)}"
        outputs = f"float[R,{part}] logits, float[B,S,{WIDTH}] final_hidden, {_cache(layer, '.updated')}"
        shapes = {"second_embedding": (vocab, WIDTH), "head": (WIDTH, part)}
        graphs["second"] = _model(inputs, outputs, body, shapes)
    return graphs


def _columns(layout: Layout, t: int, vocab: int) -> range:
    """A slice of the vocabulary; of an odd one, the first is wider."""
    edges = [0, vocab] if layout.tp == 1 else [0, vocab // 2 + 3, vocab]
    return range(edges[t], edges[t + 1])


def _program(layout: Layout, rank: int) -> SegmentProgram:
    p = layout.coordinates(rank).p
    steps: list[Step] = []
    if p == 0:
        caches = ("latent_cache.0",)
        steps += [Run("first", ("input_ids", "start", *caches), ("mixed", "latent_cache.0.updated"))]
        steps += [AllReduce("mixed", "tensor")] if layout.tp > 1 else []
        steps += [Send("mixed")] if layout.pp > 1 else []
    if p == layout.pp - 1:
        cache = "latent_cache.0" if layout.pp == 2 else "latent_cache.1"
        steps += [Recv("mixed")] if p else []
        inputs = ("input_ids", "start", "logit_rows", "mixed", cache)
        steps += [Run("second", inputs, ("logits", "final_hidden", f"{cache}.updated")), Gather("logits", "stage", -1)]
    outputs = ("logits", "final_hidden") if p == layout.pp - 1 else ()
    given = sorted({name for step in steps if isinstance(step, Run) for name in step.inputs} - {"mixed"})
    return SegmentProgram({"trunk": SegmentPart(tuple(given), outputs, tuple(steps))})


def _arrays(layout: Layout, rank: int, vocab: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    p, _, t = layout.coordinates(rank)
    whole_ones, columns = weights(vocab), _columns(layout, t, vocab)
    first = {"first_embedding": whole_ones["embedding.0"]} if p == 0 else {}
    head = np.ascontiguousarray(whole_ones["head"][:, columns.start : columns.stop])
    last = {"second_embedding": whole_ones["embedding.1"], "head": head} if p == layout.pp - 1 else {}
    return first | last


def build_toy_ranks(out: Path, checkpoint: Path, layout: Layout, key: str = "toy") -> None:
    """Writes ENGINE/rank-NNN for each rank, and the engine's own engine.json, with `checkpoint`'s vocabulary."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"hidden_size": WIDTH}
    plans = tuple(RankPlan(rank, (0, 1), 0, 0, ()) for rank in range(layout.world))
    digest = plan_digest(layout, plans, key)
    source = Checkpoint.open(checkpoint)
    for rank in (None, *range(layout.world)):
        folder = out if rank is None else out / rank_folder(rank)
        with EngineWriter(folder, checkpoint=source) as writer:
            graphs = {}
            table = []
            if rank is None:
                writer.copy_tokenizer(checkpoint)
            else:
                arrays = _arrays(layout, rank, config["vocab_size"])
                files = {name: ("onnx", data) for name, data in _graphs(layout, rank, config["vocab_size"]).items()}
                files["program"] = ("json", _program(layout, rank).to_json())
                graphs = {
                    name: writer.write_file(f"graph/{name}.{suffix}", data) for name, (suffix, data) in files.items()
                }
                planned = [PlannedWeight(name, "F32", array.shape, (), "toy") for name, array in arrays.items()]
                table = list(
                    writer.write_weights(planned, whole(planned, lambda weight, arrays=arrays: arrays[weight.name]))
                )
            writer.finish(
                Manifest(
                    producer=f"dsv3export {__version__}",
                    model=config,
                    recipe=Recipe.for_precision("fp32"),
                    backend=BackendRecord("onnxruntime", "0", 24),
                    graphs=graphs,
                    checkpoint=CheckpointRecord.from_fingerprint(checkpoint, source.fingerprint()),
                    weights=tuple(table),
                    parallel=Parallel(layout, rank, digest, plans),
                )
            )
