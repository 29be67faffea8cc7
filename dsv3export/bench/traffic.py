"""How many bytes of weights a step must read."""

from __future__ import annotations

from collections.abc import Iterable

from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Manifest


def expert_share(config: ModelConfig, tokens: int) -> float:
    """The share of the routed experts that some of `tokens` tokens choose, on average if all are as likely.

    1 - (1 - k/E)^tokens, with k of E experts for each token.
    """
    return 1 - (1 - config.num_experts_per_tok / (config.n_routed_experts or 1)) ** tokens


def bytes_read(sizes: Iterable[tuple[str, int]], config: ModelConfig, tokens: int = 1) -> float:
    """Of weights (name, bytes) as a program stores them, those that a step over `tokens` tokens reads.

    That is a row of the embedding for each token, the experts that they choose, and all else in full. Names are those
    of checkpoints, engines and GGUF files.
    """
    return sum(size * _share(name, config, tokens) for name, size in sizes)


def engine_weights(manifest: Manifest, config: ModelConfig) -> list[tuple[str, int]]:
    """(name, bytes) of the trunk's weights."""
    mtp = tuple(f"model.layers.{layer}." for layer in config.mtp_layer_ids)
    return [(entry.name, entry.nbytes) for entry in manifest.weights if not entry.name.startswith(mtp)]


def _share(name: str, config: ModelConfig, tokens: int) -> float:
    if ".mlp.experts." in name or "_exps." in name:
        return expert_share(config, tokens)
    if "embed_tokens" in name or "token_embd" in name:
        return min(1.0, tokens / config.vocab_size)
    return 1.0
