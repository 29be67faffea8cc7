"""An engine's checkpoint, executed several times on the way from float32 to what the engine computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dsv3export.checkpoint import Checkpoint
from dsv3export.compare.stages import StagedModel
from dsv3export.graphs.capture.executor import ExecutorStages
from dsv3export.recipe import Recipe, Scheme

TokenIds = Sequence[Sequence[int]]


def cause_chain(
    checkpoint: Checkpoint,
    engine: StagedModel,
    recipe: Recipe,
    prompts: TokenIds,
    calibration_ids: TokenIds | None = None,
) -> tuple[StagedModel, list[tuple[str, StagedModel]]]:
    """The float32 model, and those that lead from it to an engine, for `split_causes`.

        weights       the weights as the recipe stores them; the executor computes with them in float32
        activations   activations are rounded as well, where the recipe says so
        cache         the latent cache is kept in the recipe's format
        backend       the engine itself: kernels, their order of summation, what they round on their own

    A cause that the recipe does not have is left out.

    Args:
        recipe: The engine's.
        calibration_ids: As `ExecutorStages`'s.

    Raises RequestError where the recipe needs a calibration that is not given.
    """
    exact = Recipe.for_precision("fp32")
    steps = [
        ("weights", recipe.with_schemes(_unrounded).with_cache(exact.cache)),
        ("activations", recipe.with_cache(exact.cache)),
        ("cache", recipe),
    ]
    chain: list[tuple[str, StagedModel]] = []
    before = exact
    for name, step in steps:
        if _computes(step) != _computes(before):
            chain.append((name, ExecutorStages(checkpoint, prompts, step, calibration_ids)))
        before = step
    chain.append(("backend", engine))
    return ExecutorStages(checkpoint, prompts, exact), chain


def _unrounded(scheme: Scheme) -> Scheme:
    return replace(scheme, activations="none")


def _computes(recipe: Recipe) -> object:
    """What a recipe says of the arithmetic, without its name."""
    return {key: value for key, value in recipe.to_json().items() if key != "precision"}
