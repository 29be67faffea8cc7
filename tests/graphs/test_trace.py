"""The trace: cost at full size, the closed table of torch ops, reshapes, weights as arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from dsv3export.checkpoint.model_weights import checkpoint_tensors
from dsv3export.config import ModelConfig
from dsv3export.errors import InternalError
from dsv3export.graphs import graph_for, print_graph
from dsv3export.graphs.trace.aten import reshape_target
from dsv3export.graphs.trace.emitter import Dim
from dsv3export.graphs.trace.export import export_kind
from dsv3export.graphs.trace.kinds import Argument, LayerKind
from dsv3export.graphs.values import is_weight
from tests.support.synthetic import tiny_config

TRACE_671B = """
import json, resource, time
started = time.monotonic()
from dsv3export.graphs import graph_for, print_graph
from dsv3export.presets import preset
model = graph_for(preset("deepseek_v3"))
seconds = time.monotonic() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "calls": sum(1 for _ in model.graph),
                  "nodes": sum(len(list(f)) for f in model.functions.values())}))
"""


def test_671b_traces_within_a_minute_and_3_gb() -> None:
    """In a process of its own, whose peak memory is its own; packages' import time included."""
    done = subprocess.run([sys.executable, "-c", TRACE_671B], capture_output=True, text=True, check=True, timeout=120)
    measured = json.loads(done.stdout)
    assert measured["seconds"] < 60
    assert measured["peak"] < 3e9
    assert measured["calls"] == 1 + 61 + 1
    assert measured["nodes"] < 200


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (["B", "S", 384], ["B", "S", 4, 96], [0, 0, 4, 96]),
        (["B", "S", 4, 32], ["B", "S", 128], [0, 0, 128]),
        (["B", "S", 256], ["B*S", 256], [-1, 256]),
        (["B*S", 256], ["B", 7, 256], [-1, 7, 256]),
        (["B", "S"], ["B", "S", 1], [0, 0, 1]),
        ([6, "S"], [2, 3, "S"], [2, 3, -1]),
        ([4, 6], [24], [24]),
    ],
)
def test_reshape_target(before: Sequence[Dim], after: Sequence[Dim], target: list[int]) -> None:
    assert reshape_target(before, after) == target


def test_a_reshape_with_two_open_sizes_is_refused() -> None:
    with pytest.raises(InternalError, match=r"reshape from \['B\*S', 4\] to \['B', 'S', 4\] leaves two sizes open"):
        reshape_target(["B*S", 4], ["B", "S", 4])


class Tanh(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.tanh(x),)


def test_an_unknown_torch_op_is_refused_by_name() -> None:
    kind = LayerKind("strange", Tanh, (Argument("x", ("B", 4)),), ("y",))
    with pytest.raises(InternalError, match=r"aten\.tanh\.default.*no row"):
        export_kind(kind)


def test_a_layer_kind_is_traced_once(tiny_fp8: Path) -> None:
    model = graph_for(ModelConfig.from_file(tiny_fp8 / "config.json"))
    assert [function.name for function in model.functions.values()] == ["embed", "dense_layer", "moe_layer", "head"]
    assert [node.op_type for node in model.graph] == ["embed", "dense_layer", *["moe_layer"] * 3, "head"]


def test_what_is_done_to_a_graph_is_not_seen_in_the_next(tiny_fp8: Path) -> None:
    config = ModelConfig.from_file(tiny_fp8 / "config.json")
    before = print_graph(graph_for(config))
    altered = graph_for(config)
    for function in altered.functions.values():
        for value in [*function.inputs, *(output for node in function for output in node.outputs)]:
            value.dtype, value.shape = ir.DataType.INT8, ir.Shape([7])
            value.metadata_props.clear()
        for node in function:
            node.attributes.clear()
        function.name += "_altered"
    assert print_graph(altered) != before
    assert print_graph(graph_for(config)) == before


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"n_routed_experts": None}, ["dense_layer"] * 4),
        ({"first_k_dense_replace": 0}, ["moe_layer"] * 4),
        ({"first_k_dense_replace": 9}, ["dense_layer"] * 4),
        ({"moe_layer_freq": 2}, ["dense_layer", "dense_layer", "moe_layer", "dense_layer"]),
    ],
)
def test_layers_are_of_the_kinds_that_the_config_says(changes: dict[str, object], kinds: list[str]) -> None:
    config = ModelConfig.from_dict(tiny_config(num_hidden_layers=4, **changes))
    assert [node.op_type for node in graph_for(config).graph] == ["embed", *kinds, "head"]


@pytest.mark.parametrize("part", ["trunk", "mtp"])
def test_weights_are_the_checkpoints_tensors(part: str, tiny_fp8: Path) -> None:
    """Every tensor of the checkpoint is used by just one weight of trunk or MTP part, and no other is asked for."""
    index = json.loads((tiny_fp8 / "model.safetensors.index.json").read_text())["weight_map"]
    config = ModelConfig.from_file(tiny_fp8 / "config.json")
    graph = graph_for(config, "trunk" if part == "trunk" else "mtp").graph
    used = [name for value in graph.inputs if is_weight(value) for name in checkpoint_tensors(str(value.name), config)]
    stored = {name for name in index if not name.endswith("_scale_inv")}
    mtp = {name for name in stored if name.startswith("model.layers.4.")}
    # The MTP layer's copy of the embedding is not read: the trunk's is the same.
    shared = {"model.embed_tokens.weight"}
    expected = stored - mtp if part == "trunk" else (mtp | shared) - {"model.layers.4.embed_tokens.weight"}
    assert len(used) == len(set(used))
    assert set(used) == expected


def test_every_node_has_shapes_in_the_graphs_own_names(tiny_fp8: Path) -> None:
    model = graph_for(ModelConfig.from_file(tiny_fp8 / "config.json"))
    symbols = {
        str(dim.value)
        for function in model.functions.values()
        for node in function
        for value in node.outputs
        for dim in value.shape or ()
        if isinstance(dim, ir.SymbolicDim)
    }
    assert symbols == {"B", "S", "T", "R", "B*S"}
