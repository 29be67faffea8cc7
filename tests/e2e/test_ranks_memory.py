"""What a rank's memory grows by: its part of the weights and of the caches, and little else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import presets
from benchmarks.distributed import measured
from benchmarks.models import Models
from dsv3export.engine.parallel import Layout
from dsv3export.engine.reader import EngineFiles
from dsv3export.graphs.build import build_engine

pytestmark = pytest.mark.slow

# Code pages of ONNX Runtime, its own tables, a prompt's values, rows of the embedding: the same whatever the model.
CONSTANT = 88 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the model of 0.5 B parameters: some 150 MB of int8 weights for each of two ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "half", {**presets.PRESETS["0.5b"], "num_hidden_layers": 4})
        return Models(tmp_path_factory.mktemp("models"), "half").checkpoint


@pytest.mark.parametrize("layout", [Layout(pp=2), Layout(tp=2)], ids=Layout.describe)
def test_a_rank_holds_its_part(checkpoint: Path, tmp_path: Path, layout: Layout) -> None:
    engine = tmp_path / "cut.engine"
    build_engine(checkpoint, engine, precision="int8", layout=layout)
    result = measured(engine, layout)
    parallel = EngineFiles.open(engine).manifest.parallel
    assert parallel is not None
    for plan in parallel.ranks:
        held = plan.weight_bytes + result[f"cache_bytes_of_rank_{plan.rank}"]
        grown = result[f"memory_growth_bytes_of_rank_{plan.rank}"]
        assert held > CONSTANT  # so that a second copy of the weights would show
        assert 0.8 * held < grown < 1.1 * held + CONSTANT
