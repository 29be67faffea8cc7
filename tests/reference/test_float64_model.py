"""The float64 model that other tests compare with is itself held against transformers' results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dsv3export.checkpoint import Checkpoint
from tests.reference.float64_model import Float64Model
from tests.support.compare import LOGITS, assert_close


def test_agrees_with_the_goldens(tiny_bf16: Path, goldens: Callable[[str], Path]) -> None:
    checkpoint, folder = Checkpoint.open(tiny_bf16), goldens("bf16")
    model = Float64Model(checkpoint.config.raw, checkpoint.float32)
    ids = json.loads((folder / "goldens.json").read_text())["prompts"][3]["ids"]
    assert_close(model.logits(ids), np.load(folder / "full_logits.npz")["p3_logits"], LOGITS, "logits")
    drafts = np.load(folder / "mtp.npz")["p3_draft_logits_all"]
    first = json.loads((folder / "goldens.json").read_text())["prompts"][3]["greedy_ids"][0]
    assert_close(model.draft_logits([*ids, first]), drafts, LOGITS, "drafts")
    assert 0 < model.margin < 1
