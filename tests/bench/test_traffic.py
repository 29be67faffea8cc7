from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.bench.bandwidth import larger_than_caches, read_bandwidth
from dsv3export.bench.traffic import bytes_read, engine_weights, expert_share
from dsv3export.runtime.engine import Engine


def test_what_a_step_reads(tiny_engine: Path) -> None:
    engine = Engine.load(tiny_engine, threads=1)
    config = engine.config
    weights = dict(engine_weights(engine.manifest, config))
    assert not any(name.startswith("model.layers.4.") for name in weights)  # the MTP layer
    experts = sum(size for name, size in weights.items() if ".mlp.experts." in name)
    embedding = sum(size for name, size in weights.items() if "embed_tokens" in name)
    others = sum(weights.values()) - experts - embedding
    assert experts > 0 < embedding
    share = config.num_experts_per_tok / config.n_routed_experts
    expected = others + experts * share + embedding / config.vocab_size
    assert bytes_read(weights.items(), config) == pytest.approx(expected)
    assert bytes_read(weights.items(), config, 10**6) == pytest.approx(sum(weights.values()))


def test_experts_of_several_tokens(tiny_engine: Path) -> None:
    config = Engine.load(tiny_engine, threads=1).config
    shares = [expert_share(config, tokens) for tokens in (1, 2, 8, 64)]
    assert shares == sorted(shares) and shares[0] == config.num_experts_per_tok / config.n_routed_experts
    assert shares[1] == pytest.approx(1 - (1 - shares[0]) ** 2)


def test_bandwidth_is_measured() -> None:
    assert larger_than_caches() >= 2**30
    assert read_bandwidth(1, 1 << 24) > 1e8
