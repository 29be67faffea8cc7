"""A small golden, made without a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3export.dtypes import NUMPY
from dsv3export.golden import Golden, Settings
from dsv3export.golden.document import FORMAT, VERSION, Bound, Document, Identity, LayerValue, Profile, Prompt, Text

IDENTITY = Identity(
    kind="engine", arithmetic="int4", recipe={"precision": "int4"}, vocab_size=50, hidden_size=16, layers=(0, 1),
    n_routed_experts=8, num_experts_per_tok=2, config_sha256="c", checkpoint_sha256="d", tokenizer_sha256=None,
    programs=("numpy 2",), threads=1,
)  # fmt: skip


def small_golden(**settings: Any) -> Golden:
    """Two prompts, a layer's value, a router and a text; the numbers are of no model."""
    chosen = Settings(**{"top": 4, "new_tokens": 3, "projections": 2, **settings})
    document = Document(
        FORMAT, VERSION, "dsv3export test", IDENTITY, chosen,
        (Prompt("a text", (1, 2, 3), (4, 5, 6), 7.5), Prompt(None, (9,), (8, 8, 8), 0.0)),
        () if chosen.digest == "none" else (LayerValue("layers.0", "layers.0", 16),
                                            LayerValue("layers.1.mlp.gate", "layers.1", 8, 2)),
        Text(5, 12.0),
        (Profile("same-int4", 4.0, ("a run",), (Bound("logits.kl", 0.5, 3, 0.1, 0.12, 0.12),)),),
        "",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    arrays = {}
    for name, (dtype, shape) in document.arrays().items():
        integers = NUMPY[dtype].kind in "iu"
        values = generator.integers(0, 8, shape) if integers else generator.standard_normal(shape)
        arrays[name] = values.astype(NUMPY[dtype])
    return Golden(document, arrays)
