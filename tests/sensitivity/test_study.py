"""A whole study against a model that is made up: divergences of units add up, times a factor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from dsv3export.errors import RequestError
from dsv3export.evaluate import Comparison, Evaluation
from dsv3export.presets import preset
from dsv3export.recipe import LAYER_COMPONENTS, Recipe
from dsv3export.sensitivity.journal import MeasurementJournal
from dsv3export.sensitivity.results import Study
from dsv3export.sensitivity.search import Target
from dsv3export.sensitivity.study import Budget, Search
from dsv3export.sensitivity.units import has_component
from dsv3export.sizing.term import total
from dsv3export.sizing.weights import weight_terms

CONFIG = replace(preset("deepseek_v3"), num_hidden_layers=6, first_k_dense_replace=1)
BITS_KL = {"fp32": 0.0, "int8": 1e-4, "int4": 1e-2}
KEY = {"text": "a"}


@dataclass
class MadeUp:
    """Later layers suffer less, attention more than the rest."""

    factor: float = 1.3
    runs: list[Recipe] = field(default_factory=list)

    def __call__(self, recipe: Recipe) -> Comparison:
        self.runs.append(recipe)
        kl = BITS_KL[recipe.components["head"].format]
        for layer in range(6):
            for component in LAYER_COMPONENTS:
                if has_component(CONFIG, component, layer):
                    weight = (10 if component == "attention" else 1) / (layer + 1)
                    kl += weight * BITS_KL[recipe.scheme(component, layer, 6).format]
        nll = Evaluation(np.ones(4), 4)
        return Comparison(nll, nll, np.full(4, self.factor * kl), np.ones(4, np.bool_))


def study(
    model: Callable[[Recipe], Comparison], path: Path | None = None, target: Target | None = None,
    budget: Budget | None = None, groups: int = 6,
) -> Study:  # fmt: skip
    journal = MeasurementJournal(path, KEY)
    return Search(CONFIG, ("int8", "int4"), False, groups, budget or Budget(), journal, model).run(target)


def test_the_mix_meets_a_bound_on_divergence_with_few_bytes() -> None:
    model = MadeUp()
    found = study(model, target=Target(max_kl=0.1))
    int8, int4 = found.uniform
    assert found.met
    assert found.mix is not None and found.recipe is not None
    assert 0.07 <= found.mix.measured.kl <= 0.1 < int4.measured.kl
    assert int4.nbytes < found.mix.nbytes < int8.nbytes
    assert found.mix.nbytes == total(weight_terms(CONFIG, found.recipe))
    assert found.mix.predicted_kl == pytest.approx(found.mix.measured.kl, rel=1e-6)
    assert found.recipe in model.runs
    # What suffers most has kept its bits, what suffers least has not.
    choice = dict(found.choice)
    assert choice["attention 0"] == "int8"
    assert choice["routed_experts 5"] == "int4"


def test_the_mix_within_bytes() -> None:
    int8, int4 = study(MadeUp()).uniform
    room = (int8.nbytes + int4.nbytes) // 2
    found = study(MadeUp(), target=Target(max_bytes=room))
    assert found.met
    assert found.mix is not None
    assert found.mix.nbytes <= room
    assert found.mix.measured.kl < 0.5 * int4.measured.kl
    assert not study(MadeUp(), target=Target(max_bytes=int4.nbytes - 1)).met


def test_ranking_goes_by_harm_for_each_byte() -> None:
    found = study(MadeUp(), groups=1)
    harms = [trial.harm for trial in found.trials]
    assert harms == sorted(harms, reverse=True)
    first = found.trials[0]
    assert (first.component, first.precision) == ("attention", "int4")
    assert first.measured is not None
    assert first.measured.kl == pytest.approx(1.3 * 10 * 1e-2 * sum(1 / (layer + 1) for layer in range(6)))
    parts = sum(trial.saved_bytes for trial in found.trials if trial.precision == "int8")
    embedding = 2 * CONFIG.vocab_size * CONFIG.hidden_size  # bf16 in the preset, as in the checkpoint
    assert found.float32_bytes - parts - embedding == found.uniform[0].nbytes
    assert (found.mix, found.recipe, found.met) == (None, None, False)


def test_a_killed_search_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole, interrupted = MadeUp(), MadeUp()
    expected = study(whole, target=Target(max_kl=0.1))
    path = tmp_path / "journal"

    def killed(recipe: Recipe) -> Comparison:
        if len(interrupted.runs) == 17:
            raise KeyboardInterrupt
        return interrupted(recipe)

    with pytest.raises(KeyboardInterrupt):
        study(killed, path, Target(max_kl=0.1))
    with path.open("ab") as file:
        file.write(b'{"recipe": "torn')
    found = study(interrupted, path, Target(max_kl=0.1))
    assert without_seconds(found) == without_seconds(expected)
    assert interrupted.runs == whole.runs
    again = MadeUp()
    assert without_seconds(study(again, path, Target(max_kl=0.1))) == without_seconds(expected)
    assert again.runs == []


def without_seconds(found: Study) -> Study:
    def still(one: object) -> object:
        return replace(one, measured=replace(one.measured, seconds=0.0))  # type: ignore[type-var,attr-defined]

    return replace(found, trials=tuple(map(still, found.trials)), uniform=tuple(map(still, found.uniform)),
                   mix=still(found.mix))  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("evaluations", [3, 10, 25])
def test_no_more_is_run_than_the_budget_says(evaluations: int, tmp_path: Path) -> None:
    model = MadeUp()
    found = study(model, tmp_path / "journal", Target(max_kl=0.1), Budget(evaluations=evaluations))
    assert len(model.runs) <= evaluations
    measured = [trial for trial in found.trials if trial.measured is not None]
    assert len(measured) < len(found.trials)
    assert found.mix is not None
    # What was not measured keeps the first precision.
    unknown = {trial.unit for trial in found.trials} - {trial.unit for trial in measured}
    assert {dict(found.choice)[unit] for unit in unknown} == {"int8"}
    # What a journal knows counts as well: the same answer, and nothing is run.
    again = MadeUp()
    assert (
        study(again, tmp_path / "journal", Target(max_kl=0.1), Budget(evaluations=evaluations)).choice == found.choice
    )
    assert again.runs == []


def test_a_budget_of_time_ends_the_search() -> None:
    model = MadeUp()
    found = study(model, target=Target(max_kl=0.1), budget=Budget(seconds=1e-9))
    assert len(model.runs) == 1
    # All that is known to be right is the first precision throughout.
    assert found.mix is not None
    assert found.mix.measured == found.uniform[0].measured


def test_another_search_starts_the_journal_anew_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    study(MadeUp(), path, groups=1)
    other = MeasurementJournal(path, {"text": "b"})
    assert other.get(Recipe.for_precision("int8")) is None
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
    path.write_text("a novel\n", encoding="utf-8")
    with pytest.raises(RequestError, match="another file"):
        MeasurementJournal(path, KEY)
    assert path.read_text(encoding="utf-8") == "a novel\n"
