"""The values inside a model that a golden keeps, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.align import ROUTER_IDS, ROUTER_LOGITS, ROUTER_WEIGHTS, is_compared, token_rows
from dsv3export.compare.routing import Routing
from dsv3export.compare.stages import Stage, StagedModel, Values
from dsv3export.dtypes import NUMPY
from dsv3export.errors import InternalError, RequestError
from dsv3export.golden.digest import digest
from dsv3export.golden.document import LayerValue, Settings, router_ids_dtype
from dsv3export.progress import Progress

Array = NDArray[Any]
_ROUTER = "mlp.gate"


@dataclass(frozen=True)
class RouterRows:
    """A router's choices for a prompt: ids and weights [S, k], ids ascending; margins and logits [S], [S, E]."""

    ids: Array
    weights: Array
    margin: Array


@dataclass(frozen=True)
class StageRows:
    """What one stage computes for one prompt.

    Attributes:
        order: The names in `rows` and that of the router, as the graph computes them.
        rows: [S, numbers of a token] by provenance name.
    """

    stage: str
    prompt: int
    order: tuple[str, ...]
    rows: dict[str, Array]
    router: RouterRows | None

    @property
    def router_rows(self) -> RouterRows:
        """The choices of a stage that has a router."""
        if self.router is None:
            raise InternalError(f"{self.stage} has no router")
        return self.router


def stage_rows(model: StagedModel, prompts: int, detail: str, progress: Progress) -> Iterator[StageRows]:
    """All stages one after the other, each for all prompts.

    Args:
        detail: ``layers`` for what each stage hands on, ``all`` for every value that it names.
    """
    progress.start("layers", len(model.stages), "layers")
    for name in model.stages:
        with model.open(name) as stage:
            for prompt in range(prompts):
                values = stage.run(prompt)
                tokens = values[stage.output].shape[-2]
                kept = [each for each in values if _is_kept(each, values, stage, detail)]
                router = _router(model, stage, name, values)
                order = [router_name(name) if each.endswith(ROUTER_IDS) else each
                         for each in values if each in kept or (router and each.endswith(ROUTER_IDS))]  # fmt: skip
                rows = {each: token_rows(each, values, tokens) for each in kept}
                yield StageRows(name, prompt, tuple(order), rows, router)
        progress.advance(1)
    progress.finish()


def router_name(stage: str) -> str:
    """``layers.3.mlp.gate``."""
    return f"{stage}.{_ROUTER}"


def record_layers(
    model: StagedModel, prompts: Sequence[Sequence[int]], settings: Settings, progress: Progress
) -> tuple[tuple[LayerValue, ...], dict[str, Array]]:
    """What a golden keeps of a model's inside: the list of values, and their arrays. Raises RequestError."""
    values: dict[str, LayerValue] = {}
    parts: dict[str, list[Array]] = {}
    for seen in stage_rows(model, len(prompts), settings.detail, progress):
        for name in seen.order:
            if name in seen.rows:
                values.setdefault(name, LayerValue(name, seen.stage, seen.rows[name].shape[1]))
                kept = _kept_rows(name, seen, settings)
            else:
                router = seen.router_rows
                values.setdefault(
                    name, LayerValue(name, seen.stage, model.config.n_routed_experts, router.ids.shape[1])
                )
                kept = _kept_choices(router, model.config.n_routed_experts)
            for key, array in kept.items():
                parts.setdefault(f"{name}.{key}", []).append(array)
    return tuple(values.values()), {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _kept_rows(name: str, seen: StageRows, settings: Settings) -> dict[str, Array]:
    rows = seen.rows[name]
    if not np.isfinite(rows).all():
        raise RequestError(name, expected="finite numbers to record", got=f"inf or NaN in prompt {seen.prompt}")
    return dict(digest(rows, settings))


def _kept_choices(router: RouterRows, experts: int) -> dict[str, Array]:
    return {
        "ids": router.ids.astype(NUMPY[router_ids_dtype(experts)]),
        "weights": router.weights.astype(np.float32),
        # a router that takes all experts has an infinite margin
        "margin": np.minimum(router.margin, np.finfo(np.float32).max).astype(np.float32),
    }


def _is_kept(name: str, values: Values, stage: Stage, detail: str) -> bool:
    if detail == "layers":
        return name == stage.output
    return is_compared(name, values[name]) and not name.endswith((ROUTER_IDS, ROUTER_WEIGHTS))


def _router(model: StagedModel, stage: Stage, name: str, values: Values) -> RouterRows | None:
    ids, weights, logits = (values.get(f"{name}.{part}") for part in (ROUTER_IDS, ROUTER_WEIGHTS, ROUTER_LOGITS))
    if ids is None or weights is None or logits is None:
        return None
    order = np.argsort(ids, axis=1, kind="stable")
    margins = Routing(model.config, stage.router_bias).margins(logits)
    return RouterRows(np.take_along_axis(ids, order, axis=1), np.take_along_axis(weights, order, axis=1), margins)
