"""Engines on the native CPU kernels, against the same engines on ONNX Runtime's own and against the goldens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3export import Engine
from dsv3export.engine.native_graphs import native_graphs, native_name
from dsv3export.engine.reader import EngineFiles
from dsv3export.recipe import Recipe
from dsv3export.runtime.kernel_choice import CpuKernels
from tests.e2e.goldens import Golden
from tests.support.compare import LOGITS, assert_close

PRECISIONS = ("fp32", "bf16", "fp8", "int8", "int4")
# Two programs that round activations to int8 in the same way part where a number lies at the edge between two steps.
ROUNDED = 0.3
PROMPT = list(range(5, 60))

pytestmark = pytest.mark.usefixtures("native_library")


def load(path: Path, kernels: CpuKernels, speculate: int = 0) -> Engine:
    return Engine.load(path, threads=1, cpu_kernels=kernels, speculate=speculate)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_kinds_of_kernels_agree(engine_of: Callable[[str], Path], precision: str) -> None:
    native, own = (load(engine_of(precision), kernels) for kernels in ("native", "onnxruntime"))
    assert (native.cpu_kernels, own.cpu_kernels) == ("native", "onnxruntime")
    rounds = Recipe.for_precision(precision).components["dense_mlp"].activations != "none"
    if rounds:
        # where two scores of a router are close, another rounding chooses another expert: one position in twenty
        worst = np.abs(native.logits(PROMPT) - own.logits(PROMPT)).max(axis=-1)
        assert np.quantile(worst, 0.95) < ROUNDED
    else:
        assert_close(native.logits(PROMPT), own.logits(PROMPT), LOGITS, precision)
    for first in (5, 60, 300):  # whose continuations have no near tie
        prompt = [first, 7, 90]
        assert native.generate(prompt, 12).token_ids == own.generate(prompt, 12).token_ids


def test_drafts_of_the_mtp_layer(engine_of: Callable[[str], Path]) -> None:
    native, own = (load(engine_of("bf16"), kernels) for kernels in ("native", "onnxruntime"))
    assert_close(native.draft_logits(PROMPT), own.draft_logits(PROMPT), LOGITS)
    assert load(engine_of("bf16"), "native", speculate=2).generate(PROMPT, 12) == native.generate(PROMPT, 12)


def test_continuations_of_the_goldens(engine_of: Callable[[str], Path], bf16_golden: Golden) -> None:
    engine = load(engine_of("bf16"), "native")
    for prompt, row in enumerate(bf16_golden.arrays("last_logits")["last_logits"]):
        assert_close(engine.logits(bf16_golden.ids(prompt))[-1], row, LOGITS, f"prompt {prompt}")


def test_one_weight_table_for_both_graphs(engine_of: Callable[[str], Path]) -> None:
    """Neither graph has a weight that the table lacks, and the native one asks for no other bytes."""
    files = EngineFiles.open(engine_of("int8"))
    assert native_graphs(files.manifest) == [native_name(name) for name in ("mtp", "trunk")]
    stored = sum(entry.nbytes for entry in files.manifest.weights if entry.location == "engine")
    on_disk = sum(path.stat().st_size for path in (files.path / "weights").glob("*.safetensors"))
    assert on_disk < stored * 1.01 + (1 << 20)


def test_a_cache_of_any_format(tiny_bf16: Path, tmp_path: Path) -> None:
    from dsv3export.graphs.build import build_engine

    for cache in ("bf16", "fp8"):
        build_engine(tiny_bf16, tmp_path / cache, precision="bf16", cache_dtype=cache)
        native, own = (load(tmp_path / cache, kernels) for kernels in ("native", "onnxruntime"))
        difference = np.abs(native.logits(PROMPT) - own.logits(PROMPT)).max()
        # a latent at the edge between two steps of its format
        assert difference < 0.05, cache
