"""The executor: streaming of weights, provenance names, bad requests, and its interpreter's refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import is_bank
from dsv3export.errors import InternalError, RequestError
from dsv3export.graphs import Executor, packer
from dsv3export.graphs.interpreter import run
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.graphs.weight_expr import leaf
from dsv3export.recipe import Recipe
from tests.support.synthetic import random_checkpoint, tiny_config

IDS = [0, 5, 96, 33, 2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("executor") / "checkpoint"
    return Checkpoint.open(random_checkpoint(path, tiny_config(), seed=2))


@pytest.fixture(scope="module")
def executor(checkpoint: Checkpoint) -> Executor:
    return Executor(checkpoint)


@pytest.mark.parametrize("budget", [0, 20_000, 200_000])
def test_a_model_larger_than_the_budget_streams(checkpoint: Checkpoint, executor: Executor, budget: int) -> None:
    streaming = Executor(checkpoint, max_weight_bytes=budget)
    assert (streaming.logits(IDS) == executor.logits(IDS)).all()
    assert (streaming.logits(IDS[:2]) == executor.logits(IDS[:2])).all()


@pytest.mark.parametrize("precision", ["int4", "fp8"])
def test_banks_of_several_parts_stream(precision: str, tmp_path: Path) -> None:
    """Numbers, scales and zero points of an expert come together; the banks are larger than the budget."""
    config = tiny_config(hidden_size=64, moe_intermediate_size=32)
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "checkpoint", config, seed=2))
    component = {"format": "int4", "group_size": 32, "symmetric": False} if precision == "int4" else {"format": "fp8"}
    recipe = Recipe.from_json({"precision": "fp32", "components": {"routed_experts": component}})
    whole = Executor(checkpoint, recipe=recipe).logits(IDS)
    assert (Executor(checkpoint, max_weight_bytes=0, recipe=recipe).logits(IDS) == whole).all()
    assert (whole != Executor(checkpoint).logits(IDS)).any()


def test_a_streamed_bank_is_never_held(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[slice] = []
    load = packer.load_float32

    def watched(name: str, source: Checkpoint, rows: slice) -> NDArray[np.float32]:
        if is_bank(name):
            read.append(rows)
        return load(name, source, rows)

    monkeypatch.setattr(packer, "load_float32", watched)
    Executor(checkpoint, max_weight_bytes=0).logits(IDS)
    assert read and all(rows.stop - rows.start == 1 for rows in read)


def test_weight_cache_keeps_to_its_budget(checkpoint: Checkpoint) -> None:
    """The latest weights stay; a weight larger than the budget is still handed out."""
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    size = checkpoint.float32(names[0]).nbytes
    exprs = {name: leaf(name) for name in names}
    cache = WeightCache(checkpoint, exprs, 2 * size)
    first, second = cache[names[0]], cache[names[1]]
    assert cache[names[0]] is first
    assert torch.equal(cache[names[2]], torch.tensor(checkpoint.float32(names[2])))
    assert cache[names[0]] is first
    assert cache[names[1]] is not second
    nothing = WeightCache(checkpoint, exprs, 0)
    assert torch.equal(nothing[names[0]], first)


def test_intermediates_carry_provenance_names(executor: Executor) -> None:
    values = executor.intermediates(IDS)
    shapes = {
        "embed_tokens": (1, 5, 48),
        "rotary.cos": (1, 5, 4),
        "layers.0": (1, 5, 48),
        "layers.0.mlp.down_proj": (1, 5, 48),
        "layers.0.self_attn.q_a_layernorm": (1, 5, 28),
        "layers.1.self_attn.kv_a_proj_with_mqa": (1, 5, 28),
        "layers.1.self_attn.latent_append": (1, 5, 28),
        "layers.1.self_attn.mla_attention": (1, 5, 30),
        "layers.1.mlp.gate.ids": (5, 3),
        "layers.1.mlp.gate.weights": (5, 3),
        "layers.1.mlp.experts": (5, 48),
        "layers.1.mlp.shared_experts.down_proj": (1, 5, 48),
        "layers.1": (1, 5, 48),
        "norm": (1, 5, 48),
        "lm_head": (5, 97),
    }
    assert {name: values[name].shape for name in shapes} == shapes
    assert (values["lm_head"] == executor.logits(IDS)).all()
    assert not any(name.startswith("layers.2") for name in values)


def test_residual_stream_is_the_sum_of_its_parts(executor: Executor) -> None:
    values = executor.intermediates(IDS)
    middle = values["layers.0"] + values["layers.1.self_attn.o_proj"]
    assert (middle == values["layers.1.add"]).all()
    assert (middle + values["layers.1.mlp.add"] == values["layers.1"]).all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "at least one"), ([3, 97], r"0\.\.96.*97"), ([-1], r"0\.\.96.*-1")],
)
def test_bad_token_ids_are_refused(executor: Executor, ids: list[int], message: str) -> None:
    for request in (executor.logits, executor.intermediates):
        with pytest.raises(RequestError, match=message):
            request(ids)


def test_drafts_want_an_mtp_layer(executor: Executor) -> None:
    with pytest.raises(RequestError, match="a model with an MTP layer"):
        executor.draft_logits(IDS)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "at least one.*none"), ([4], "at least 2 tokens.*1"), ([4, 2048], r"0\.\.2047.*2048")],
)
def test_drafts_of_bad_token_ids_are_refused(tiny_bf16: Path, ids: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Executor.from_checkpoint(tiny_bf16).draft_logits(ids)


def test_an_op_without_a_kernel_is_refused_by_name() -> None:
    x, y = ir.Value(name="x"), ir.Value(name="y")
    body = ir.Graph([x], [y], nodes=[ir.node("Gelu", [x], outputs=[y])], name="kind")
    kind = ir.Function(KIND_DOMAIN, "kind", graph=body, attributes=[])
    a, b = ir.Value(name="a"), ir.Value(name="b")
    call = ir.node("kind", [a], domain=KIND_DOMAIN, outputs=[b])
    call.metadata_props["dsv3.path"] = ""
    model = ir.Model(ir.Graph([a], [b], nodes=[call]), ir_version=11, functions=[kind])
    with pytest.raises(InternalError, match="no kernel for onnx::Gelu"):
        run(model, {"a": torch.zeros(2)}, {})
