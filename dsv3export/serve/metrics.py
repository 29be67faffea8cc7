"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dsv3export.runtime.async_engine import AsyncEngine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Of one server; nothing is shared between servers of one process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("dsv3export_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.prompt_tokens = Counter("dsv3export_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.new_tokens = Counter("dsv3export_generated_tokens", "Tokens generated.", registry=registry)
        self.first_token = Histogram(
            "dsv3export_time_to_first_token_seconds", "From request to first token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "dsv3export_time_between_tokens_seconds", "From token to token.", buckets=_SECONDS, registry=registry
        )
        self.duration = Histogram(
            "dsv3export_request_seconds", "From request to the last token.", buckets=_SECONDS, registry=registry
        )
        state = (("running", "Requests with a slot."), ("waiting", "Requests that wait for a slot."),
                 ("cached_tokens", "Tokens in the slots' latent cache."))  # fmt: skip
        for name, meaning in state:
            gauge = Gauge(f"dsv3export_{name}", meaning, registry=registry)
            gauge.set_function(lambda name=name: getattr(engine.state, name))  # type: ignore[misc]
        size = Gauge("dsv3export_latent_cache_bytes", "Memory of the slots' latent cache.", registry=registry)
        size.set(engine.batcher.cache_bytes)
        if engine.engine.prefixes is not None:
            stats = engine.engine.prefixes.stats
            reused = Gauge(
                "dsv3export_reused_tokens", "Tokens of prompts found in the prefix cache.", registry=registry
            )
            reused.set_function(lambda: stats.found)

        speculation = engine.engine.speculation
        for name, meaning in (
            ("drafted", "Tokens that the MTP layer drafted."),
            ("accepted", "Drafts that were right."),
        ):
            gauge = Gauge(f"dsv3export_{name}_tokens", meaning, registry=registry)
            gauge.set_function(lambda name=name: getattr(speculation, name))  # type: ignore[misc]

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
