"""Parts of the checkpoint's matrices that stay there: the same numbers as in an engine that has copied them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.parallel import Layout, rank_folder
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.build import build_engine


@pytest.mark.parametrize(
    ("precision", "layout", "columns"),
    [
        ("bf16", Layout(tp=4), {"self_attn.o_proj.weight", "mlp.experts.down_proj", "mlp.down_proj.weight"}),
        ("fp8", Layout(ep=2), {"mlp.shared_experts.down_proj.weight", "mlp.down_proj.weight"}),
    ],
)
def test_parts_are_those_of_a_copy(
    tiny_bf16: Path, tiny_fp8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    precision: str, layout: Layout, columns: set[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("dsv3export.graphs.weight_plan.MIN_REFERENCE_BYTES", 1)
    checkpoint = tiny_fp8 if precision == "fp8" else tiny_bf16
    for name, copied in (("referring", False), ("copied", True)):
        build_engine(checkpoint, tmp_path / name, precision=precision, layout=layout, copy_weights=copied)
    strided = set()
    for rank in range(layout.world):
        referring = EngineFiles.open(tmp_path / "referring" / rank_folder(rank))
        copied_files = EngineFiles.open(tmp_path / "copied" / rank_folder(rank))
        assert referring.entries.keys() == copied_files.entries.keys()
        for name, entry in referring.entries.items():
            np.testing.assert_array_equal(
                referring.weight(name).view(np.uint8), copied_files.weight(name).view(np.uint8), err_msg=name
            )
            if any(piece.run for piece in entry.pieces):
                strided.add(name.split(".", 3)[-1])
    assert columns <= strided
