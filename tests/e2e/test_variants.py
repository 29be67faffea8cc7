"""Executor and strict engine on config variants with random weights, against independent implementations.

The float64 model (tests/reference) is the reference everywhere; transformers joins in where it computes what the
published code does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.generation import prompt_logits
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession
from tests.e2e.goldens import Array
from tests.e2e.variants import (
    V2,
    token_ids,
    transformers_logits,
    unusual_configs,
    v2_configs,
    v3_configs,
)
from tests.reference.float64_model import Float64Model
from tests.support.compare import LOGITS, MARGIN, assert_close
from tests.support.synthetic import random_checkpoint, tiny_config

NAMED: dict[str, dict[str, Any]] = {
    "as DeepSeek-V3": {"num_nextn_predict_layers": 1},
    "two MTP layers": {"num_nextn_predict_layers": 2},
    "as DeepSeek-V2-Lite": {
        **V2,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    "as DeepSeek-V2": {
        **V2,
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 16.0,
    },
    "dense": {"n_routed_experts": None},
    "dense with MTP and tied embeddings": {
        "n_routed_experts": 0,
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": True,
    },
    "every second layer sparse": {"num_hidden_layers": 4, "moe_layer_freq": 2, "first_k_dense_replace": 0},
    "no shared expert": {"n_shared_experts": None},
    "one group, no YaRN": {"n_group": 1, "topk_group": 1, "rope_scaling": None},
    "all experts chosen": {"num_experts_per_tok": 8, "topk_group": 4},
    "one expert": {"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1},
    "one head, one layer": {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1},
}


def tolerance(expected: Array) -> float:
    """Logits of random models may be larger than those of trained ones; an error grows with them."""
    return LOGITS * max(1.0, float(np.abs(expected).max()) / 10)


def check_programs(path: Path, expected: Array, ids: Sequence[int], chunk: int) -> None:
    """Executor and engine, in one pass and over the cache in chunks."""
    atol = tolerance(expected)
    executor = Executor.from_checkpoint(path)
    assert_close(executor.logits(list(ids)), expected, atol, "executor")
    assert_close(prompt_logits(executor, ids, chunk), expected, atol, f"executor in chunks of {chunk}")
    engine = path.with_suffix(".engine")
    build_engine(path, engine)
    session = OnnxRuntimeSession(EngineFiles.open(engine), threads=1)
    assert_close(prompt_logits(session, ids, len(ids)), expected, atol, "engine")
    assert_close(prompt_logits(session, ids, chunk), expected, atol, f"engine in chunks of {chunk}")
    if executor.config.num_nextn_predict_layers:
        checkpoint = Checkpoint.open(path)
        drafts = Float64Model(executor.config.raw, checkpoint.float32).draft_logits(ids)
        assert_close(executor.draft_logits(list(ids)), drafts, tolerance(drafts), "drafts")


def check(config: Mapping[str, Any], seed: int, chunk: int, transformers: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = random_checkpoint(Path(folder) / "checkpoint", config, seed)
        ids = token_ids(config)
        model = Float64Model(config, Checkpoint.open(path).float32)
        expected = model.logits(ids)
        if config["num_nextn_predict_layers"]:
            model.draft_logits(ids)
        if model.margin <= MARGIN:
            reject()  # weights for which right float32 programs may choose different experts
        if transformers:
            assert_close(transformers_logits(path, ids), expected, tolerance(expected), "transformers")
        check_programs(path, expected, ids, chunk)


@pytest.mark.parametrize("name", NAMED)
def test_named_variants(name: str) -> None:
    check(tiny_config(**NAMED[name]), seed=1, chunk=5, transformers=False)


# An example takes seconds, so a failing one is reported as it is, not shrunk.
quick = partial(settings, phases=(Phase.explicit, Phase.reuse, Phase.generate))
chunks = st.sampled_from([1, 2, 5, 20])
seeds = st.integers(0, 2**20)


@pytest.mark.slow
@quick(max_examples=12)
@given(config=v3_configs(), seed=seeds, chunk=chunks)
def test_v3_variants(config: dict[str, Any], seed: int, chunk: int) -> None:
    check(config, seed, chunk, transformers=True)


@pytest.mark.slow
@quick(max_examples=10)
@given(config=v2_configs(), seed=seeds, chunk=chunks)
def test_v2_variants(config: dict[str, Any], seed: int, chunk: int) -> None:
    check(config, seed, chunk, transformers=True)


@pytest.mark.slow
@quick(max_examples=12)
@given(config=unusual_configs(), seed=seeds, chunk=chunks)
def test_unusual_variants(config: dict[str, Any], seed: int, chunk: int) -> None:
    check(config, seed, chunk, transformers=False)
