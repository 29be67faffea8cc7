"""Integer engines: how far they stray from float32, and that the executor says the same of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dsv3export import Engine
from dsv3export.evaluate import Comparison, compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.recipe import Recipe, RecipeError
from tests.support.synthetic import random_checkpoint, tiny_config

# A part of the held-out text: 8 chunks, where the perplexity of float32 is known to 0.01 %.
TOKENS = 2040


@dataclass(frozen=True)
class Bound:
    """What a precision may cost on the trained model; each about twice what is measured.

    Args:
        perplexity: Largest ratio to float32's.
        kl: Largest mean KL(float32 || engine) in nats.
        top1: Least share of positions with the same likeliest token.
    """

    perplexity: float
    kl: float
    top1: float


RECIPES = {
    "int8": ('precision = "int8"', Bound(1.002, 0.001, 0.98)),
    "int8 per channel, asymmetric": (
        'precision = "int8"\n'
        + "".join(
            f'[components.{name}]\nformat = "int8"\ngroup_size = "channel"\nsymmetric = false\n'
            for name in ("attention", "dense_mlp", "shared_experts", "routed_experts", "head")
        ),
        Bound(1.003, 0.0015, 0.97),
    ),
    "int4": ('precision = "int4"', Bound(1.02, 0.013, 0.91)),
    "int4, groups of 32, asymmetric, first layer int8": (
        'precision = "int4"\n'
        + "".join(
            f'[components.{name}]\nformat = "int4"\ngroup_size = 32\nsymmetric = false\nmethod = "rtn"\n'
            for name in ("attention", "dense_mlp", "shared_experts", "routed_experts")
        )
        + '[first_layers]\ncount = 1\n[first_layers.components.dense_mlp]\nformat = "int8"\n',
        Bound(1.02, 0.009, 0.92),
    ),
    "experts int4, the rest float32": (
        'precision = "fp32"\n[components.routed_experts]\nformat = "int4"\n',
        Bound(1.01, 0.005, 0.95),
    ),
}


@dataclass(frozen=True)
class Built:
    """An engine of a recipe, and the executor at the same recipe."""

    engine: Engine
    one_by_one: Engine
    executor: Executor
    bound: Bound
    nbytes: int


@pytest.fixture(scope="module", params=RECIPES, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def built(request: pytest.FixtureRequest, tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    text, bound = RECIPES[request.param]
    folder = tmp_path_factory.mktemp("precision")
    (folder / "recipe.toml").write_text(text)
    report = build_engine(tiny_bf16, folder / "engine", recipe=folder / "recipe.toml")
    return Built(
        Engine.load(folder / "engine", threads=1),
        Engine.load(folder / "engine", threads=1, prefill_chunk=1),
        Executor.from_checkpoint(tiny_bf16, recipe=Recipe.from_toml(folder / "recipe.toml")),
        bound,
        report.engine_bytes,
    )


@pytest.fixture(scope="module")
def heldout(root: Path) -> list[int]:
    ids: list[int] = json.loads((root / "tests/data/goldens/heldout_token_ids.json").read_text())
    return ids[:TOKENS]


@pytest.fixture(scope="module")
def float32(tiny_bf16: Path) -> Executor:
    return Executor.from_checkpoint(tiny_bf16)


def within(comparison: Comparison, bound: Bound) -> list[str]:
    """What of `bound` does not hold."""
    checks = {
        f"perplexity ratio {comparison.perplexity_ratio:.5f}": comparison.perplexity_ratio <= bound.perplexity,
        f"KL {comparison.kl_mean:.5f}": comparison.kl_mean <= bound.kl,
        f"top-1 {comparison.top1_agreement:.4f}": comparison.top1_agreement >= bound.top1,
    }
    return [name for name, holds in checks.items() if not holds]


def test_costs_no_more_than_its_bound(built: Built, float32: Executor, heldout: list[int]) -> None:
    assert within(compare(built.engine, float32, heldout), built.bound) == []


def test_executor_explains_the_engine(built: Built, float32: Executor, heldout: list[int]) -> None:
    """The executor rounds weights and activations as the kernels do.

    Float noise tips a rounding to int8 now and then, and all that follows is another sample of the same error. Short
    prompts are mostly spared: there, what the executor leaves unexplained is float noise.
    """
    unexplained, explained = [], []
    for place in range(0, 150, 3):
        ids = [0, *heldout[place : place + 3]]
        engine, executor, exact = (model.logits(ids)[-1] for model in (built.engine, built.executor, float32))
        unexplained.append(rms(engine - executor))
        explained.append(rms(executor - exact))
    assert np.median(unexplained) < 1e-3 * np.median(explained)


def test_decoding_agrees_with_prefill(built: Built, heldout: list[int]) -> None:
    """One token at a time takes the absorbed form with integer products, a prefill the other."""
    ids = heldout[:150]
    whole, steps = built.engine.logits(ids), built.one_by_one.logits(ids)
    assert (whole.argmax(axis=-1) == steps.argmax(axis=-1)).mean() >= 0.97
    assert rms(whole - steps) < 0.15 * rms(whole - whole.mean())


def test_engines_shrink(tiny_bf16: Path, tmp_path: Path) -> None:
    size = {p: build_engine(tiny_bf16, tmp_path / p, precision=p).engine_bytes for p in ("fp32", "int8", "int4")}
    assert size["int8"] < 0.3 * size["fp32"]
    assert size["int4"] < 0.18 * size["fp32"]


def test_equal_inputs_give_equal_weights(tiny_fp8: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        build_engine(tiny_fp8, tmp_path / name, precision="int4")
    first, second = (tmp_path / name / "weights/model-00001.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_groups_that_do_not_divide_an_experts_width_are_refused(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", tiny_config(moe_intermediate_size=96), seed=1)
    with pytest.raises(RecipeError, match=r"routed_experts group_size: expected a divisor of .*96.*, got 64"):
        build_engine(checkpoint, tmp_path / "engine", precision="int8")
    assert not (tmp_path / "engine").exists()


def rms(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    return float(np.sqrt(np.mean(array.astype(np.float64) ** 2)))
