"""The pass that narrows the cache: what the graph looks like afterwards, before and after the lowering."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from dsv3export.config import ModelConfig
from dsv3export.graphs import graph_for
from dsv3export.graphs.lower.onnxruntime import lower
from dsv3export.graphs.passes.cache_format import narrow_cache
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.printer import print_graph
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import verify
from dsv3export.graphs.trace import Part
from dsv3export.graphs.values import is_weight
from dsv3export.recipe import CACHE_FORMATS, CacheFormat, Recipe
from tests.support.synthetic import tiny_config

TYPES = {"bf16": ir.DataType.BFLOAT16, "f16": ir.DataType.FLOAT16, "fp8": ir.DataType.FLOAT8E4M3FN}


def narrowed(format: CacheFormat, precision: str = "fp32", part: Part = "trunk") -> GraphWithWeights:
    config = ModelConfig.from_dict(tiny_config(num_nextn_predict_layers=1))
    traced = GraphWithWeights.traced(graph_for(config, part))
    return narrow_cache(quantise(traced, Recipe.for_precision(precision), config), format, config)


def run_time_inputs(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for value in model.graph.inputs if not is_weight(value)}


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
@pytest.mark.parametrize("part", ["trunk", "mtp"])
@pytest.mark.parametrize("format", ["bf16", "f16", "fp8"])
def test_the_graph_is_legal_and_attention_reads_float32(format: CacheFormat, part: Part, precision: str) -> None:
    model = narrowed(format, precision, part).model
    verify(model)
    attentions = 0
    for function in model.functions.values():
        for node in [node for node in function if "MlaAttention" in node.op_type]:
            latent = node.inputs[2]
            assert latent is not None and latent.dtype == ir.DataType.FLOAT
            append = latent.producer()
            assert append is not None and append.op_type.startswith("LatentAppend") and append.outputs[-1] is latent
            assert append.inputs[0] is not None and append.inputs[0].dtype == TYPES[format]
            attentions += 1
    assert attentions == (2 if part == "trunk" else 1)


@pytest.mark.parametrize("format", ["bf16", "f16"])
def test_a_16_bit_cache_is_one_array_per_layer(format: CacheFormat) -> None:
    model = narrowed(format).model
    assert list(run_time_inputs(model)) == ["input_ids", "start", "latent_cache.0", "latent_cache.1", "logit_rows"]
    assert [str(value.name) for value in model.graph.outputs][2:] == [f"latent_cache.{i}.updated" for i in range(2)]
    assert {value.dtype for value in model.graph.outputs[2:]} == {TYPES[format]}


def test_an_fp8_cache_has_a_second_array_per_layer() -> None:
    model = narrowed("fp8").model
    caches = {name: value for name, value in run_time_inputs(model).items() if name.startswith("latent_cache")}
    assert list(caches) == ["latent_cache.0", "latent_cache.0.side", "latent_cache.1", "latent_cache.1.side"]
    results = {str(value.name): value for value in model.graph.outputs[2:]}
    assert results.keys() == {f"{name}.updated" for name in caches}
    for name, value in caches.items():
        updated = results[f"{name}.updated"]
        assert (updated.dtype, updated.shape) == (value.dtype, value.shape)


def test_float32_stays_as_it_is() -> None:
    plain = ModelConfig.from_dict(tiny_config(num_nextn_predict_layers=1))
    expected = quantise(GraphWithWeights.traced(graph_for(plain)), Recipe.for_precision("fp32"), plain)
    assert print_graph(narrowed("fp32").model) == print_graph(expected.model)


@pytest.mark.parametrize("format", CACHE_FORMATS)
def test_lowered(format: CacheFormat) -> None:
    """An fp8 cache needs opset 26 throughout, for BitCast; ONNX Runtime then sees the bits of its numbers."""
    model = lower(narrowed(format)).model
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    assert {graph.opset_imports.get("", 0) for graph in graphs} == {26 if format == "fp8" else 24}
    kinds = {value.dtype for name, value in run_time_inputs(model).items() if name.startswith("latent_cache")}
    lowered = {"fp32": {ir.DataType.FLOAT}, "fp8": {ir.DataType.INT8, ir.DataType.BFLOAT16}}
    assert kinds == lowered.get(format, {TYPES.get(format)})
    values = [value for graph in graphs for node in graph for value in (*node.inputs, *node.outputs) if value]
    assert all(value.dtype != ir.DataType.FLOAT8E4M3FN for value in values if not is_weight(value))
