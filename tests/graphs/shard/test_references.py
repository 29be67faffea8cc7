"""Parts of the checkpoint's matrices that stay there: the same numbers as in an engine that has copied them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3export.engine.parallel import Layout, rank_folder
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.build import build_engine
from dsv3export.progress import NoProgress


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


def test_ranks_have_the_bytes_of_the_whole(tiny_bf16: Path, tmp_path: Path) -> None:
    """Integers, scales and zero points of two ranks side by side are those of the uncut engine."""
    build_engine(tiny_bf16, tmp_path / "whole", precision="int8", mtp=False)
    build_engine(tiny_bf16, tmp_path / "cut", precision="int8", mtp=False, layout=Layout(tp=2))
    whole = EngineFiles.open(tmp_path / "whole")
    ranks = [EngineFiles.open(tmp_path / "cut" / rank_folder(rank)) for rank in range(2)]
    cut = 0
    for name in whole.entries.keys() & ranks[0].entries.keys():
        array, parts = whole.weight(name), [rank.weight(name) for rank in ranks]
        axes = [axis for axis, size in enumerate(array.shape) if parts[0].shape[axis] != size]
        if axes:
            cut += 1
            parts = [np.concatenate(parts, axes[0])]
        for part in parts:
            np.testing.assert_array_equal(array, part, err_msg=name)
    assert cut > 30


class Stopping(NoProgress):
    """Ctrl-C in the middle of the weights."""

    def __init__(self) -> None:
        self.written = 0

    def advance(self, amount: int) -> None:
        self.written += amount
        if self.written > 10_000_000:
            raise KeyboardInterrupt


def test_an_interrupted_build_goes_on(tiny_bf16: Path, tmp_path: Path) -> None:
    layout = Layout(pp=2, tp=2)
    build_engine(tiny_bf16, tmp_path / "plain", layout=layout)
    with pytest.raises(KeyboardInterrupt):
        build_engine(tiny_bf16, tmp_path / "engine", layout=layout, progress=Stopping())
    assert not (tmp_path / "engine").exists()
    report = build_engine(tiny_bf16, tmp_path / "engine", layout=layout)
    assert report.resumed_bytes > 0
    for file in (tmp_path / "plain").rglob("*.safetensors"):
        again = tmp_path / "engine" / file.relative_to(tmp_path / "plain")
        assert file.read_bytes() == again.read_bytes()
