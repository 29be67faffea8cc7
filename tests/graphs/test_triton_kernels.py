"""The executor by its Triton kernels: in the interpreter against the definitions, and on a device without numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.errors import BackendError
from dsv3export.graphs.executor import recipe_graph
from dsv3export.graphs.interpreter import run
from dsv3export.graphs.tensors import torch_tensor
from dsv3export.graphs.triton_kernels import TritonKernels
from dsv3export.graphs.weight_cache import WeightCache
from dsv3export.plugins.kernels.tuning import Tuning
from dsv3export.recipe import Recipe
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from tests.support.synthetic import random_checkpoint, tiny_config

CONFIG = tiny_config(
    hidden_size=128,
    intermediate_size=160,
    moe_intermediate_size=128,
    kv_lora_rank=64,
    q_lora_rank=96,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    num_nextn_predict_layers=1,
)
# Of ||kernels - definitions|| / ||definitions||, by the type of activations and whether they are rounded further:
# then a number at the edge between two steps may go either way.
TOLERANCES = {"F32": 1e-5, "BF16": 4e-2}
ROUNDED = 5e-2
CASES = (
    ("fp32 cache=fp8", "F32", False),
    ("bf16", "BF16", False),
    ("fp8 1x128", "F32", False),
    ("int8", "F32", True),
    ("int4 zero cache=bf16", "F32", False),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("kernels") / "checkpoint"
    return Checkpoint.open(random_checkpoint(path, CONFIG, seed=3))


@pytest.fixture(scope="module")
def distances(checkpoint: Checkpoint) -> dict[tuple[str, str, bool], list[float]]:
    """What the worker says of each case."""
    pytest.importorskip("triton")
    cases = [
        {"recipe": recipe, "activations": activations, "budget": 0 if streamed else 1 << 30}
        for recipe, activations, streamed in CASES
    ]
    worker = Path(__file__).with_name("triton_kernels_worker.py")
    done = subprocess.run(
        [sys.executable, worker, checkpoint.path],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_steps_by_kernels_are_those_by_definition(
    case: tuple[str, str, bool], distances: dict[tuple[str, str, bool], list[float]]
) -> None:
    """Ragged slots, positions behind a cache, a verification of two tokens, the caches themselves, the drafts."""
    recipe, activations, _ = case
    bound = max(TOLERANCES[activations], ROUNDED if "1x128" in recipe or recipe.startswith("int") else 0.0)
    assert max(distances[case]) <= bound
    if activations != "F32":
        assert max(distances[case]) > 0.0


@pytest.mark.parametrize(
    ("precision", "cache", "queries"), [("bf16", "bf16", 1), ("fp8", "bf16", 2), ("int4", "fp8", 1), ("fp8", "f16", 16)]
)
def test_a_step_never_waits_for_its_device(precision: str, cache: str, queries: int, checkpoint: Checkpoint) -> None:
    """Values on the device "meta" have shapes and no numbers: whoever reads one, or mixes devices, gets an error."""
    recipe = Recipe.for_precision(precision).with_cache(cache)
    graph = recipe_graph(checkpoint.config, "trunk", recipe)
    launched: list[str] = []
    kernels = TritonKernels(
        lambda launch, *_: launched.append(launch.build.name), 90, torch.device("meta"), "BF16", 132, Tuning("none")
    )
    caches = LatentCache(CacheLayout.of(recipe.cache, checkpoint.config), 3, 32).inputs(range(3))
    inputs = {
        "input_ids": torch.zeros(3, queries, dtype=torch.int64),
        "start": torch.tensor([5, 0, 9]),
        "logit_rows": torch.arange(3),
        **{name: torch_tensor(array) for name, array in caches},
    }
    outputs = run(graph.model, kernels.place(inputs), WeightCache(checkpoint, graph.weights, 1 << 30), kernels=kernels)
    assert {value.device.type for value in outputs.values()} == {"meta"}
    assert outputs["logits"].shape == (3, checkpoint.config.vocab_size)
    assert outputs["logits"].dtype == torch.bfloat16
    attention = {"mla_prefill" if queries == 16 else "mla_split"}
    assert attention | {"moe_route", "moe_order", "moe_combine"} <= set(launched)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_they_are_refused() -> None:
    pytest.importorskip("triton")
    with pytest.raises(BackendError, match=r"expected an NVIDIA GPU.*triton-interpreter"):
        TritonKernels.on_gpu()
