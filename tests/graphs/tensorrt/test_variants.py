"""Other models of the family: no query compression, other routers, odd widths; and a build that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.manifest import Manifest
from dsv3export.graphs.backend import TensorRTOptions
from dsv3export.graphs.build import build_engine
from dsv3export.progress import NoProgress, Unit
from tests.support.synthetic import random_checkpoint, tiny_config

pytest.importorskip("tensorrt_rtx_bindings")

SMALL = TensorRTOptions(max_slots=2, max_length=16, prefill_chunk=8)
VARIANTS: dict[str, dict[str, Any]] = {
    "a V2-Lite-like router, queries as they are": {
        "q_lora_rank": None, "topk_method": "greedy", "scoring_func": "softmax", "n_group": 1, "topk_group": 1,
        "norm_topk_prob": False,
    },
    "a V2-like router, no shared experts": {
        "topk_method": "group_limited_greedy", "scoring_func": "softmax", "n_shared_experts": None,
    },
    "odd widths": {"hidden_size": 22, "kv_lora_rank": 14, "qk_nope_head_dim": 9, "v_head_dim": 7, "q_lora_rank": 5},
    "no experts at all": {"n_routed_experts": None, "n_shared_experts": None},
}  # fmt: skip


@pytest.mark.parametrize(("name", "precision"), zip(VARIANTS, ["bf16", "fp8", "fp8", "bf16"], strict=True))
def test_variants_of_the_architecture_build(name: str, precision: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", tiny_config(**VARIANTS[name]), seed=1)
    report = build_engine(checkpoint, tmp_path / "engine", backend="tensorrt-rtx", precision=precision, tensorrt=SMALL)
    built = set(report.manifest.graphs)
    assert {"embed.decode", "head.prefill", "dense_layer.decode"} <= built
    assert ("moe_layer.decode" in built) == (name != "no experts at all")


class StopAtWeights(NoProgress):
    """Ctrl-C when so many bytes of weights are written."""

    def __init__(self, after: int) -> None:
        self._left, self._writing = after, False

    def start(self, title: str, total: int, unit: Unit) -> None:
        self._writing = unit == "bytes"

    def advance(self, amount: int) -> None:
        if self._writing:
            self._left -= amount
            if self._left <= 0:
                raise KeyboardInterrupt


def test_a_stopped_build_goes_on(tiny_fp8: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backend": "tensorrt-rtx", "precision": "int4", "layers": "1:2", "tensorrt": SMALL}
    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        build_engine(tiny_fp8, tmp_path / "engine", progress=StopAtWeights(300_000), threads=1, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["engine.partial"]
    report = build_engine(tiny_fp8, tmp_path / "engine", **options)
    assert report.resumed_bytes > 0
    whole = build_engine(tiny_fp8, tmp_path / "whole", **options)
    for name, record in Manifest.read(tmp_path / "engine").files.items():
        assert record.sha256 == whole.manifest.files[name].sha256, name
