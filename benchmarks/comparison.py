"""Subjects measured side by side: in turns, each time in a fresh process, with what the machine could do meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.launch import run_undisturbed, run_worker
from benchmarks.limits import Limits
from benchmarks.subjects import Subject
from benchmarks.summary import figures, ratios, shares_of_limits, spreads
from benchmarks.weight_bytes import weight_bytes
from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters

_MAX_OTHERS = 0.2


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        prefill_tokens: Lengths of prompts; decode steps follow the first of them.
        new_tokens: Decode steps in a pass.
        passes: Measured passes in a process, after one to warm up.
        repeats: Processes of each subject; they take turns.
        repeats_of: As `repeats`, for the subjects of one program.
        tries: Runs of a process that other programs disturb, at most.
        patience: Seconds to wait for other programs, each time.
    """

    prefill_tokens: tuple[int, ...]
    new_tokens: int
    passes: int
    repeats: int
    repeats_of: Mapping[str, int]
    tries: int
    patience: float


class Comparison:
    """Measures `subjects`, all of the same model; their logits lie in `folder` afterwards."""

    def __init__(self, subjects: Sequence[Subject], config: ModelConfig, settings: Settings, folder: Path) -> None:
        self._subjects, self._settings, self._folder = subjects, settings, folder
        self._active = count_parameters(config).active
        self._weights = {subject.name: weight_bytes(subject, config) for subject in subjects}
        ids = np.random.default_rng(0).integers(3, config.vocab_size, max(settings.prefill_tokens))
        self._prompt = [int(token) for token in ids]

    def measure(self, threads: int, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """All subjects in turn, several times over, and the ratios of `pairs` of them; JSON-able."""
        runs: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in self._subjects}
        measured: list[Limits] = []
        for repeat in range(self._settings.repeats):
            measured.append(Limits(**run_worker("limits", threads)))
            for subject in self._subjects:
                if repeat < self._repeats(subject):
                    runs[subject.name].append(self._generate(subject, threads))
                    say(f"threads {threads}, turn {repeat + 1}/{self._settings.repeats}: {subject.name}")
        limits = Limits.best(measured)
        of_runs = {name: [figures(run, self._settings.new_tokens) for run in each] for name, each in runs.items()}
        found = {name: spreads(each) for name, each in of_runs.items()}
        return {
            "subjects": found,
            "ratios": ratios(of_runs, pairs),
            "limits": limits.as_json(),
            "shares_of_limits": {
                name: shares_of_limits(of_subject, limits, self._weights[name], self._active)
                for name, of_subject in found.items()
            },
            "runs": runs,
        }

    def reference_logits(self, subject: Subject, threads: int) -> Path:
        """The logits of one that is not measured."""
        run_worker("reference", threads, **self._job(subject))
        say(f"logits of {subject.name}")
        return self.logits(subject.name)

    def logits(self, name: str) -> Path:
        """Where the logits of the first prompt length are, float32[tokens, vocab], once measured."""
        return self._folder / f"{name.replace(' ', '-')}.npy"

    @property
    def weights(self) -> dict[str, Any]:
        """Bytes of each subject's weights; JSON-able."""
        return {name: asdict(size) for name, size in self._weights.items()}

    def _repeats(self, subject: Subject) -> int:
        return self._settings.repeats_of.get(subject.program, self._settings.repeats)

    def _generate(self, subject: Subject, threads: int) -> dict[str, Any]:
        tries, patience = self._settings.tries, self._settings.patience
        job = {**self._job(subject), "passes": self._settings.passes}
        return run_undisturbed("generate", threads, _MAX_OTHERS, tries, patience, **job)

    def _job(self, subject: Subject) -> dict[str, Any]:
        return {
            "program": subject.program, "model": subject.model, "options": dict(subject.options),
            "prompt": self._prompt, "prefill_tokens": self._settings.prefill_tokens,
            "new_tokens": self._settings.new_tokens, "logits": self.logits(subject.name),
        }  # fmt: skip


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
