"""A toy causal model with the interface of an engine, as a numpy session and as an ONNX engine.

The latent of token t at position p in layer i is embedding_i[t] * (1 + p / 8). The logits at a position are the mean
of the latents of layer 0 up to there, plus that of layer 1, times a head matrix. So every token of the sequence
matters, and so does its position; a wrong cache row, start or mask changes the logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dsv3export import __version__
from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.manifest import BackendRecord, CheckpointRecord, Manifest
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.writer import EngineWriter
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.runtime.session import Hidden, IntArray, Logits
from tests.support.whole_weights import whole

LAYERS, WIDTH = 2, 24
_HEAD_SCALE = 3.0


def weights(vocab: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    random = np.random.default_rng(vocab)
    shapes = {"embedding.0": (vocab, WIDTH), "embedding.1": (vocab, WIDTH), "head": (WIDTH, vocab)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


class ToySession:
    """The model in numpy; records the shape of each step."""

    cache_layout = CacheLayout(LAYERS, WIDTH)
    cache_on_host = True

    def __init__(self, vocab: int) -> None:
        self.vocab_size = vocab
        self.steps: list[tuple[tuple[int, ...], range, int]] = []
        self._weights = weights(vocab)

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        batch, length = input_ids.shape
        assert batch == len(slots) == len(start) and np.all(start + length <= cache.capacity)
        self.steps.append((input_ids.shape, slots, len(logit_rows)))
        rows = [self._row(input_ids[b], int(start[b]), cache, slots[b]) for b in range(batch)]
        flat = np.concatenate(rows)[logit_rows]
        logits: Logits = (flat @ self._weights["head"] * np.float32(_HEAD_SCALE)).astype(np.float32)
        return logits

    def _row(self, ids: IntArray, start: int, cache: LatentCache, slot: int) -> Logits:
        positions = np.arange(start, start + len(ids))
        for layer in range(LAYERS):
            latents = self._weights[f"embedding.{layer}"][ids] * (1 + positions[:, None] / 8).astype(np.float32)
            cache.view(layer, range(slot, slot + 1))[0, positions] = latents
        return self._mixed(positions, cache, slot)

    def _mixed(self, positions: IntArray, cache: LatentCache, slot: int) -> Hidden:
        seen = [cache.view(layer, range(slot, slot + 1))[0] for layer in range(LAYERS)]
        mixed = [seen[0][: p + 1].mean(axis=0) + seen[1][p] for p in positions]
        return np.stack(mixed).astype(np.float32)


class ToyDraftingSession(ToySession):
    """With an MTP layer: the draft is a mean over the pairs so far, of hidden state and next token's embedding.

    Against the trunk it is right now and then, by `agreement` more often.
    """

    draft_cache_layout = CacheLayout(1, WIDTH)

    def __init__(self, vocab: int, agreement: float = 1.0) -> None:
        super().__init__(vocab)
        self._agreement = np.float32(agreement)

    def step_hidden(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> tuple[Logits, Hidden]:
        logits = self.step(input_ids, start, cache, slots, logit_rows)
        length = input_ids.shape[1]
        hidden = [
            self._mixed(np.arange(start[b], start[b] + length), cache, slot).reshape(length, WIDTH)
            for b, slot in enumerate(slots)
        ]
        return logits, np.stack(hidden)

    def draft(
        self, hidden: Hidden, next_ids: IntArray, start: IntArray, cache: LatentCache, slots: range,
        logit_rows: IntArray,
    ) -> tuple[Logits, Hidden]:  # fmt: skip
        batch, length = next_ids.shape
        assert hidden.shape == (batch, length, WIDTH) and batch == len(slots)
        assert np.all(start + length <= cache.capacity)
        results = []
        for b, slot in enumerate(slots):
            positions = np.arange(start[b], start[b] + length)
            latents = hidden[b] / 2 + self._weights["embedding.1"][next_ids[b]]
            cache.view(0, range(slot, slot + 1))[0, positions] = latents
            seen = cache.view(0, range(slot, slot + 1))[0]
            results.append(np.stack([seen[: p + 1].mean(axis=0) / self._agreement + seen[p] for p in positions]))
        mixed = np.stack(results).astype(np.float32)
        logits: Logits = mixed.reshape(-1, WIDTH)[logit_rows] @ self._weights["head"]
        return logits, mixed


def onnx_graph(vocab: int) -> bytes:
    """The model in ONNX text, its weights external, as an engine's trunk."""
    import onnx
    from onnx import parser

    caches_in = ", ".join(f'float[B,T,{WIDTH}] "latent_cache.{i}"' for i in range(LAYERS))
    caches_out = ", ".join(f'float[B,T,{WIDTH}] "latent_cache.{i}.updated"' for i in range(LAYERS))
    append = "\n".join(
        f"""e{i} = Gather ("embedding.{i}", input_ids)
            new{i} = Mul (e{i}, scale3)
            "latent_cache.{i}.updated" = TensorScatter <axis=1> ("latent_cache.{i}", new{i}, start)
            seen{i} = Slice ("latent_cache.{i}.updated", zero, longest, one)"""
        for i in range(LAYERS)
    )
    text = f"""<ir_version: 11, opset_import: ["" : 24]>
        trunk (int64[B,S] input_ids, int64[B] start, int64[R] logit_rows, {caches_in})
        => (float[R,{vocab}] logits, float[B,S,{WIDTH}] final_hidden, {caches_out}) {{
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
            most = ReduceMax <keepdims=1> (start)
            longest = Add (most, length)
            {append}
            longest0 = Squeeze (longest)
            keys = Range (scalar0, longest0, scalar1)
            positions3 = Unsqueeze (positions, two)
            visible = LessOrEqual (keys, positions3)
            visiblef = Cast <to=1> (visible)
            summed = MatMul (visiblef, seen0)
            count = Add (positionsf, onef)
            count3 = Unsqueeze (count, two)
            mean = Div (summed, count3)
            final_hidden = Add (mean, new1)
            flat_shape = Constant <value_ints=[-1, {WIDTH}]> ()
            flat = Reshape (final_hidden, flat_shape)
            picked = Gather (flat, logit_rows)
            product = MatMul (picked, head)
            head_scale = Constant <value_float={_HEAD_SCALE}> ()
            logits = Mul (product, head_scale)
        }}"""
    model = parser.parse_model(text)
    for name, array in weights(vocab).items():
        tensor = model.graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights/BY_REFERENCE")
    return bytes(model.SerializeToString())


def planned(vocab: int) -> list[PlannedWeight]:
    return [PlannedWeight(name, "F32", array.shape, (), "toy") for name, array in weights(vocab).items()]


def build_toy_engine(out: Path, checkpoint: Path, force: bool = False) -> Manifest:
    """Writes an engine of the toy model that claims to come from `checkpoint`, with its vocabulary and tokenizer."""
    config = json.loads((checkpoint / "config.json").read_text())
    vocab, arrays = config["vocab_size"], weights(config["vocab_size"])
    source = Checkpoint.open(checkpoint)
    with EngineWriter(out, force=force, checkpoint=source) as writer:
        graph = writer.write_file("graph/trunk.onnx", onnx_graph(vocab))
        table = writer.write_weights(planned(vocab), whole(planned(vocab), lambda weight: arrays[weight.name]))
        writer.copy_tokenizer(checkpoint)
        return writer.finish(
            Manifest(
                producer=f"dsv3export {__version__}",
                model=config,
                recipe=Recipe.for_precision("fp32"),
                backend=BackendRecord("onnxruntime", "0", 24),
                graphs={"trunk": graph},
                checkpoint=CheckpointRecord.from_fingerprint(checkpoint, source.fingerprint()),
                weights=tuple(table),
            )
        )
