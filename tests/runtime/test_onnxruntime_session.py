from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import parser

from dsv3export.checkpoint import Checkpoint
from dsv3export.dtypes import NUMPY
from dsv3export.engine.manifest import BackendRecord, CheckpointRecord, Manifest
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.writer import EngineWriter
from dsv3export.errors import BackendError, EngineError, InternalError
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from tests.runtime.toy_model import LAYERS, WIDTH, ToySession, onnx_graph, planned
from tests.support.whole_weights import whole

FP32 = Recipe.for_precision("fp32")


@pytest.fixture(scope="module")
def session(toy_engine_path: Path) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(EngineFiles.open(toy_engine_path), threads=1)


def new_cache(slots: int = 3, capacity: int = 20) -> LatentCache:
    return LatentCache(CacheLayout(LAYERS, WIDTH), slots, capacity)


def ints(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_reads_its_sizes_from_the_graph(session: OnnxRuntimeSession) -> None:
    assert (session.cache_layout, session.vocab_size) == (CacheLayout(LAYERS, WIDTH), 2048)


def test_any_sequence_of_steps_agrees_with_the_toy_model(session: OnnxRuntimeSession) -> None:
    """Ranges of slots, lengths and numbers of rows change from step to step."""
    toy, random = ToySession(2048), np.random.default_rng(1)
    ours, theirs = new_cache(), new_cache()
    start = np.zeros(3, np.int64)
    for first, last, length in [(0, 1, 4), (1, 3, 2), (0, 3, 1), (2, 3, 5), (0, 3, 1), (0, 2, 3), (1, 2, 1)]:
        slots = range(first, last)
        ids = random.integers(0, 2048, (len(slots), length))
        rows = random.permutation(ids.size)[: random.integers(0, ids.size + 1)]
        got = session.step(ids, start[first:last].copy(), ours, slots, rows)
        np.testing.assert_allclose(got, toy.step(ids, start[first:last].copy(), theirs, slots, rows), atol=1e-4)
        start[first:last] += length
    for layer in range(LAYERS):
        assert np.array_equal(ours.view(layer, range(3)), theirs.view(layer, range(3)))


@pytest.mark.parametrize("small", [0, 100_000, 1 << 30])
def test_weights_give_the_same_whichever_way_they_are_bound(
    session: OnnxRuntimeSession, toy_engine_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr("dsv3export.runtime.onnxruntime_open._SMALL", small)
    other = OnnxRuntimeSession(EngineFiles.open(toy_engine_path), threads=1)
    step = np.array([[1, 2, 3]]), ints(0), new_cache(), range(1), ints(0, 1, 2)
    assert np.array_equal(other.step(*step), session.step(*step))


def test_a_failure_of_the_backend_is_one_line(session: OnnxRuntimeSession) -> None:
    with pytest.raises(BackendError, match=r"ONNX Runtime failed in a step: got .*indices") as caught:
        session.step(np.array([[2048]]), ints(0), new_cache(), range(1), ints(0))
    assert "\n" not in str(caught.value)


def test_padding_on_the_right_is_overwritten_by_the_next_step(session: OnnxRuntimeSession) -> None:
    padded, plain = new_cache(2), new_cache(2)
    both = np.array([[5, 6, 7], [8, 0, 0]])
    logits = session.step(both, ints(0, 0), padded, range(2), ints(2, 3))
    for slot, prompt in enumerate([[5, 6, 7], [8]]):
        rows = ints(len(prompt) - 1)
        alone = session.step(np.array([prompt]), ints(0), plain, range(slot, slot + 1), rows)
        np.testing.assert_allclose(logits[slot], alone[0], atol=1e-5)
    next_ids, lengths = np.array([[9], [10]]), ints(3, 1)
    after = session.step(next_ids, lengths, padded, range(2), ints(0, 1))
    np.testing.assert_allclose(after, session.step(next_ids, lengths, plain, range(2), ints(0, 1)), atol=1e-5)


def test_only_the_stepped_rows_change(session: OnnxRuntimeSession) -> None:
    cache = new_cache(4, 10)
    for layer in range(LAYERS):
        cache.view(layer, range(4))[:] = 77
    session.step(np.array([[1, 2], [3, 4]]), ints(3, 5), cache, range(1, 3), ints(0))
    for layer in range(LAYERS):
        changed = np.argwhere((cache.view(layer, range(4)) != 77).any(axis=2)).tolist()
        assert changed == [[1, 3], [1, 4], [2, 5], [2, 6]]


def test_a_step_that_does_not_fit_is_a_bug(session: OnnxRuntimeSession) -> None:
    with pytest.raises(InternalError, match="does not fit"):
        session.step(np.array([[1, 2]]), ints(19), new_cache(), range(1), ints(0))


def test_returned_logits_are_not_overwritten(session: OnnxRuntimeSession) -> None:
    cache = new_cache()
    first = session.step(np.array([[1]]), ints(0), cache, range(1), ints(0))
    kept = first.copy()
    session.step(np.array([[2]]), ints(1), cache, range(1), ints(0))
    assert np.array_equal(first, kept)


def test_bindings_live_as_long_as_their_cache(session: OnnxRuntimeSession) -> None:
    gc.collect()
    cache, before = new_cache(), len(session._trunk._bindings)
    for start in range(5):
        session.step(np.array([[1]]), ints(start), cache, range(1), ints(0))
    assert len(session._trunk._bindings) == before + 1 and len(session._trunk._bindings[cache]) == 1
    del cache
    gc.collect()
    assert len(session._trunk._bindings) == before


def test_two_sessions_do_not_interfere(session: OnnxRuntimeSession, toy_engine_path: Path) -> None:
    def run(one: OnnxRuntimeSession) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return one.step(np.array([[1, 2, 3]]), ints(0), new_cache(), range(1), ints(2))

    expected = run(session)
    other = OnnxRuntimeSession(EngineFiles.open(toy_engine_path), threads=1)
    assert np.array_equal(run(other), expected)
    del other
    gc.collect()
    assert np.array_equal(run(session), expected)


MEASURE = """
import sys, resource
import numpy as np
from dsv3export.engine.reader import EngineFiles
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession

session = OnnxRuntimeSession(EngineFiles.open(sys.argv[1]), threads=1)
for capacity in (256, 1 << 20):
    cache = LatentCache(session.cache_layout, 1, capacity)
    for start in range(200):
        session.step(np.array([[1]]), np.array([start]), cache, range(1), np.array([0]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_decode_step_allocates_nothing_that_grows_with_the_capacity(toy_engine_path: Path, root: Path) -> None:
    """Of the large cache (2 layers of 100 MB) only the pages of the rows written may ever be touched."""
    command = [sys.executable, "-c", MEASURE, str(toy_engine_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert large - small < 4 << 20


def dtype_engine(out: Path, checkpoint: Path) -> None:
    """An engine whose weights are stored in the dtypes that numpy lacks, one of them in the checkpoint."""
    source = Checkpoint.open(checkpoint)
    reference = source.tensors["model.layers.1.post_attention_layernorm.weight"]
    assert reference.dtype == "BF16" and reference.shape == (256,)
    model = parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 24]>
        trunk (int64[B,S] input_ids, int64[B] start, int64[R] logit_rows, float[B,T,4] "latent_cache.0")
        => (float[R,256] logits, float[B,T,4] "latent_cache.0.updated") {
            zero = Constant <value_float=0.0> ()
            shape = Constant <value_ints=[1, 1, 4]> ()
            zero4 = Expand (zero, shape)
            "latent_cache.0.updated" = Add ("latent_cache.0", zero4)
            row = Cast <to=1> (norm)
            fp8 = Cast <to=1> (small)
            sum = Add (row, fp8)
            rows = Cast <to=1> (logit_rows)
            one = Constant <value_ints=[1]> ()
            column = Unsqueeze (rows, one)
            logits = Add (column, sum)
        }"""
    )
    plan = [
        PlannedWeight("norm", "BF16", (256,), (reference.name,), "as_stored", (reference,)),
        PlannedWeight("small", "F8_E4M3", (256,), (), "test"),
    ]
    for weight, onnx_type in zip(plan, (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN), strict=True):
        tensor = model.graph.initializer.add(name=weight.name, data_type=onnx_type, dims=weight.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights/BY_REFERENCE")
    with EngineWriter(out, checkpoint=source) as writer:
        graph = writer.write_file("graph/trunk.onnx", model.SerializeToString())
        table = writer.write_weights(plan, whole(plan, lambda weight: np.arange(256).astype(NUMPY[weight.dtype])))
        record = CheckpointRecord.from_fingerprint(checkpoint, source.fingerprint())
        backend = BackendRecord("onnxruntime", "0", 24)
        writer.finish(Manifest("test", source.config.raw, FP32, backend, {"trunk": graph}, record, tuple(table)))


def test_bf16_and_fp8_weights_and_references(tmp_path: Path, tiny_fp8: Path) -> None:
    dtype_engine(tmp_path / "engine", tiny_fp8)
    files = EngineFiles.open(tmp_path / "engine")
    assert files.entries["norm"].location == "checkpoint"
    session = OnnxRuntimeSession(files, threads=1)
    logits = session.step(np.array([[1]]), ints(0), LatentCache(CacheLayout(1, 4), 1, 4), range(1), ints(0))
    stored = Checkpoint.open(tiny_fp8).array("model.layers.1.post_attention_layernorm.weight").astype(np.float32)
    expected = stored + np.arange(256).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(logits[0], expected)


def graph_engine(out: Path, checkpoint: Path, graph: bytes, plan: Sequence[PlannedWeight] = ()) -> EngineFiles:
    source = Checkpoint.open(checkpoint)
    with EngineWriter(out, checkpoint=source) as writer:
        graph_record = writer.write_file("graph/trunk.onnx", graph)
        table = writer.write_weights(plan, whole(plan, lambda weight: np.zeros(weight.shape, NUMPY[weight.dtype])))
        record = CheckpointRecord.from_fingerprint(checkpoint, source.fingerprint())
        backend = BackendRecord("onnxruntime", "0", 24)
        writer.finish(Manifest("test", source.config.raw, FP32, backend, {"trunk": graph_record}, record, tuple(table)))
    return EngineFiles.open(out)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (None, "weight 'head': expected type 1 [24, 2048], as in the graph, got none"),
        (PlannedWeight("head", "F32", (24, 2047), (), ""), "got type 1 [24, 2047]"),
        (PlannedWeight("head", "I32", (24, 2048), (), ""), "got type 6 [24, 2048]"),
        (PlannedWeight("head", "F32", (2048, 24), (), ""), "got type 1 [2048, 24]"),
    ],
)
def test_a_table_that_does_not_fit_the_graph_is_refused(
    tmp_path: Path, tiny_fp8: Path, changed: PlannedWeight | None, said: str
) -> None:
    """ONNX Runtime would read beyond the end of a weight that is smaller than the graph says."""
    plan = [weight for weight in planned(2048) if weight.name != "head"] + ([changed] if changed else [])
    files = graph_engine(tmp_path / "engine", tiny_fp8, onnx_graph(2048), plan)
    with pytest.raises(EngineError, match=re.escape(said)):
        OnnxRuntimeSession(files)


def test_a_graph_of_no_known_operators_is_refused(tmp_path: Path, tiny_fp8: Path) -> None:
    graph = onnx_graph(2048).replace(b"TensorScatter", b"TensorScotter")
    files = graph_engine(tmp_path / "engine", tiny_fp8, graph, planned(2048))
    with pytest.raises(BackendError, match=r"refuses the graph.*TensorScotter") as caught:
        OnnxRuntimeSession(files)
    assert "\n" not in str(caught.value)


def test_a_graph_of_unknown_sizes_is_refused(tmp_path: Path, tiny_fp8: Path) -> None:
    model = onnx.load_from_string(onnx_graph(2048))
    model.graph.input[3].type.tensor_type.shape.dim[2].dim_param = "W"
    files = graph_engine(tmp_path / "engine", tiny_fp8, model.SerializeToString(), planned(2048))
    with pytest.raises(EngineError, match="one static cache width"):
        OnnxRuntimeSession(files)


@pytest.mark.parametrize(("kind", "number"), [("double", onnx.TensorProto.DOUBLE), ("int8", onnx.TensorProto.INT8)])
def test_a_cache_of_another_type_is_refused(tmp_path: Path, tiny_fp8: Path, kind: str, number: int) -> None:
    """int8 has to have a second array beside it."""
    model = parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 24]>
        trunk (int64[B,S] input_ids, int64[B] start, int64[R] logit_rows, {kind}[B,T,4] "latent_cache.0")
        => (float[R,8] logits, {kind}[B,T,4] "latent_cache.0.updated") {{
            rows = Cast <to={number}> (input_ids)
            axes = Constant <value_ints=[2]> ()
            wide = Unsqueeze (rows, axes)
            shape = Constant <value_ints=[1, 1, 4]> ()
            four = Expand (wide, shape)
            "latent_cache.0.updated" = TensorScatter <axis=1> ("latent_cache.0", four, start)
            picked = Cast <to=1> (logit_rows)
            one = Constant <value_ints=[1]> ()
            column = Unsqueeze (picked, one)
            eight = Constant <value_ints=[1, 8]> ()
            logits = Expand (column, eight)
        }}"""
    )
    files = graph_engine(tmp_path / "engine", tiny_fp8, model.SerializeToString())
    with pytest.raises(EngineError, match=rf"expected a cache of float, .*, got tensor\({kind}\)"):
        OnnxRuntimeSession(files)


def test_a_graph_that_is_none_is_refused(tmp_path: Path, tiny_fp8: Path) -> None:
    with pytest.raises(EngineError, match="expected an ONNX model"):
        OnnxRuntimeSession(graph_engine(tmp_path / "engine", tiny_fp8, b"not a graph"))


def test_a_graph_with_other_inputs_is_refused(tmp_path: Path, tiny_fp8: Path) -> None:
    model = parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 24]>
        other (int64[B,S] input_ids, float[B,T,4] "latent_cache.0") => (float[B,T,4] y) {
            y = Neg ("latent_cache.0")
        }"""
    )
    files = graph_engine(tmp_path / "engine", tiny_fp8, model.SerializeToString())
    with pytest.raises(EngineError, match=re.escape("'latent_cache.0.updated', 'logit_rows', 'logits', 'start'")):
        OnnxRuntimeSession(files)
