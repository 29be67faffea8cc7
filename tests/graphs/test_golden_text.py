"""The traced graphs as text, against files that a reviewer reads.

After an intended change of the graph, ``DSV3EXPORT_UPDATE_GOLDENS=1 python -m pytest tests/graphs/test_golden_text.py``
writes the files anew (and the tests fail once, to say so); the difference belongs into the review.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from dsv3export.config import ModelConfig
from dsv3export.engine.parallel import Layout
from dsv3export.graphs import graph_for, print_graph
from dsv3export.graphs.passes.quantise import quantise
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.shard import shard, stage_graph
from dsv3export.graphs.trace import Part
from dsv3export.recipe import Recipe

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "DSV3EXPORT_UPDATE_GOLDENS"

# What DeepSeek-V2-Lite differs in from DeepSeek-V3, at the size of the tiny model.
V2_LITE_LIKE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("tiny_trunk", {}, "trunk"),
        ("tiny_mtp", {}, "mtp"),
        ("v2_lite_like_trunk", V2_LITE_LIKE, "trunk"),
    ],
)
def test_traced_graph(name: str, changes: dict[str, Any], part: Part, tiny_fp8: Path) -> None:
    tiny = ModelConfig.from_file(tiny_fp8 / "config.json")
    check_text(name, graph_for(ModelConfig.from_dict({**tiny.raw, **changes}), part))


@pytest.mark.parametrize("precision", ["bf16"])
def test_quantised_graph(precision: str, tiny_fp8: Path) -> None:
    tiny = ModelConfig.from_file(tiny_fp8 / "config.json")
    traced = GraphWithWeights.traced(graph_for(tiny, "trunk"))
    check_text(f"tiny_trunk_{precision}", quantise(traced, Recipe.for_precision(precision), tiny).model)


def test_graph_of_a_rank(tiny_fp8: Path) -> None:
    """The last of eight ranks: two stages, half of the heads, half of the experts."""
    tiny = ModelConfig.from_file(tiny_fp8 / "config.json")
    traced = GraphWithWeights.traced(graph_for(tiny, "trunk"))
    stage = stage_graph(traced, range(2, 4), first=False, last=True)
    check_text("tiny_trunk_rank_7_of_8", shard(stage, Layout(2, 2, 2), rank=7).model)


def check_text(name: str, model: ir.Model) -> None:
    text = print_graph(model)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get(UPDATE):
        path.write_text(text)
        pytest.fail(f"{path} was written anew; look at the difference, then unset {UPDATE}")
    expected = path.read_text()
    difference = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(path), "traced", lineterm="", n=1)
    assert text == expected, "\n".join(difference)


def test_precision_of_the_checkpoint_does_not_show_in_the_graph(tiny_fp8: Path, tiny_bf16: Path) -> None:
    """Precision is a matter of passes and of reading, not of the trace."""
    fp8, bf16 = (print_graph(graph_for(ModelConfig.from_file(path / "config.json"))) for path in (tiny_fp8, tiny_bf16))
    assert fp8 == bf16
