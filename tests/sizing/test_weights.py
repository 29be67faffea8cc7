"""Bytes of weights, against the graphs that the compiler makes and by hand."""

from __future__ import annotations

import math

import pytest

from dsv3export.config import ModelConfig
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.trace import graph_for
from dsv3export.model_size import count_parameters
from dsv3export.presets import preset
from dsv3export.recipe import Recipe, Scheme
from dsv3export.sizing.term import total
from dsv3export.sizing.weights import matrix_bytes, weight_terms
from tests.support.synthetic import tiny_config


def graph_bytes(config: ModelConfig, recipe: Recipe) -> int:
    """Of the quantised graph's weights, without the embedding, which keeps its dtype, and the rotary frequencies."""
    graph = quantise(GraphWithWeights.traced(graph_for(config)), recipe, config)
    inputs = {str(value.name): value for value in graph.model.graph.inputs}
    sizes = {
        name: math.prod(int(dim) for dim in dims_of(inputs[name])) * (inputs[name].dtype or pytest.fail(name)).itemsize
        for name in graph.weights
    }
    return int(sum(size for name, size in sizes.items() if "embed_tokens" not in name and "rotary" not in name))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int8", "int4"])
def test_as_many_bytes_as_the_quantised_graph_has(precision: str, tied: bool) -> None:
    config = ModelConfig.from_dict(tiny_config(tie_word_embeddings=tied, moe_intermediate_size=128, hidden_size=128))
    recipe = Recipe.for_precision(precision)
    terms = [term for term in weight_terms(config, recipe) if term.name != "embedding"]
    assert total(terms) == graph_bytes(config, recipe)


def test_layer_groups_and_options_count() -> None:
    config = ModelConfig.from_dict(tiny_config(moe_intermediate_size=128, hidden_size=128))
    recipe = Recipe.from_json(
        {
            "precision": "int4",
            "components": {"attention": {"symmetric": False, "group_size": 32}, "head": {"format": "fp32"}},
            "first_layers": {"count": 2, "components": {"routed_experts": {"format": "int8"}}},
            "last_layers": {"count": 1, "components": {"attention": {"format": "fp8"}}},
        }
    )
    terms = [term for term in weight_terms(config, recipe) if term.name != "embedding"]
    assert total(terms) == graph_bytes(config, recipe)


def test_deepseek_v3_in_fp8() -> None:
    config = preset("deepseek_v3")
    terms = {term.name: term.value for term in weight_terms(config, Recipe.for_precision("fp8"))}
    matrices = 58 * 256 * 3 * 2048 * 7168
    assert terms["routed_experts"] == matrices + matrices // 128**2 * 4
    assert terms["head"] == terms["embedding"] == 129280 * 7168 * 2
    assert sum(terms.values()) == pytest.approx(count_parameters(config).total, rel=0.005)


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        (Scheme.of("fp32"), 4 * 160 * 130),
        (Scheme.of("f16"), 2 * 160 * 130),
        (Scheme.of("fp8"), 160 * 130 + 2 * 2 * 4),
        (Scheme.of("int8"), 160 * (2 * 128 + 2 * 4)),
        (Scheme.of("int8", {"group_size": "channel"}), 160 * (2 * 128 + 2 * 4)),
        (Scheme.of("int4", {"group_size": 32}), 160 * (5 * 16 + 5 * 4)),
        (Scheme.of("int4", {"group_size": 32, "symmetric": False}), 160 * (5 * 16 + 5 * 4 + 3)),
    ],
)
def test_ragged_matrices(scheme: Scheme, size: int) -> None:
    """160 rows of 130 columns: the last block or group of each is filled up."""
    assert matrix_bytes(160, 130, scheme) == size
