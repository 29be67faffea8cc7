"""The inside of a model against a golden: each layer's values and routers' choices, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.stages import StagedModel
from dsv3export.golden.digest import RowErrors, digest_errors, kept_errors
from dsv3export.golden.document import LayerValue
from dsv3export.golden.file import Golden
from dsv3export.golden.layers import RouterRows, StageRows, stage_rows
from dsv3export.golden.results import Measurement, Place
from dsv3export.progress import Progress

Array = NDArray[Any]
_RIGHT_SIZE = "other sizes than in the golden"


class LayerCheck:
    """Compares a model that runs layer by layer."""

    def __init__(self, golden: Golden) -> None:
        self._golden, self._document, self._arrays = golden, golden.document, golden.arrays
        self._values = {value.name: value for value in golden.document.values}
        lengths = [len(prompt.ids) for prompt in golden.document.prompts]
        ends = np.cumsum(lengths)
        self._places = [slice(int(end) - length, int(end)) for end, length in zip(ends, lengths, strict=True)]
        # Tokens that went through other experts: what follows is not the same computation.
        self._same = [np.ones(length, np.bool_) for length in lengths]
        self._missing = set(self._values)

    def measurements(self, model: StagedModel, progress: Progress) -> Iterator[Measurement]:
        """In the order in which the model computes."""
        for seen in stage_rows(model, len(self._places), self._document.settings.detail, progress):
            for name in seen.order:
                if name not in self._values:
                    continue
                self._missing.discard(name)
                if name in seen.rows:
                    yield from self._value(self._values[name], seen)
                else:
                    yield from self._router(self._values[name], seen.prompt, seen.router_rows)

    def measurements_of(self, other: Golden) -> Iterator[Measurement]:
        """The same of another golden of the same prompts and settings."""
        theirs = {value.name: value for value in other.document.values}
        for stage in dict.fromkeys(value.stage for value in self._document.values):
            values = [value for value in self._document.values if value.stage == stage and value.name in theirs]
            for prompt in range(len(self._places)):
                for value in values:
                    yield from self._recorded(value, theirs[value.name], prompt, other)

    def _recorded(self, value: LayerValue, theirs: LayerValue, prompt: int, other: Golden) -> Iterator[Measurement]:
        place = self._places[prompt]
        self._missing.discard(value.name)
        if (value.width, value.chosen) != (theirs.width, theirs.chosen):
            metric = "router.margin" if value.is_router else "layers.error"
            yield _misshapen(metric, value.name, prompt, (value.width, value.chosen), (theirs.width, theirs.chosen))
        elif value.is_router:
            parts = (other.arrays[f"{value.name}.{key}"][place] for key in ("ids", "weights", "margin"))
            yield from self._router(value, prompt, RouterRows(*parts))
        else:
            kept, got = (_kept(golden, value.name, place) for golden in (self._golden, other))
            yield from self._errors(value, prompt, kept_errors(kept, got, self._document.settings))

    def not_compared(self) -> list[str]:
        """What of the golden the model has not shown, after `measurements` has ended; whole layers as such."""
        shown = {value.stage for value in self._values.values() if value.name not in self._missing}
        left = [value for value in self._values.values() if value.name in self._missing]
        return list(dict.fromkeys(
            f"{value.name}: the model does not show it" if value.stage in shown
            else f"{value.stage}: the model does not have this layer"
            for value in left
        ))  # fmt: skip

    def _value(self, value: LayerValue, seen: StageRows) -> Iterator[Measurement]:
        rows, place = seen.rows[value.name], self._places[seen.prompt]
        if rows.shape != (place.stop - place.start, value.width):
            yield _misshapen(
                "layers.error", value.name, seen.prompt, (place.stop - place.start, value.width), rows.shape
            )
            return
        errors = digest_errors(_kept(self._golden, value.name, place), rows, self._document.settings)
        yield from self._errors(value, seen.prompt, errors)

    def _errors(self, value: LayerValue, prompt: int, errors: RowErrors) -> Iterator[Measurement]:
        same = np.flatnonzero(self._same[prompt])
        if len(same):
            worst = int(same[errors.error[same].argmax()])
            where = Place(worst, int(errors.column[worst]), float(errors.expected[worst]), float(errors.got[worst]))
            largest = float(errors.error[worst])
            yield Measurement("layers.error", prompt, value.name, largest, largest, where)
        middle = float(np.median(errors.error))
        yield Measurement("layers.median", prompt, value.name, middle, middle)

    def _router(self, value: LayerValue, prompt: int, got: RouterRows) -> Iterator[Measurement]:
        place = self._places[prompt]
        ids, weights, margin = (self._arrays[f"{value.name}.{key}"][place] for key in ("ids", "weights", "margin"))
        if got.ids.shape != ids.shape:
            yield _misshapen("router.margin", value.name, prompt, ids.shape, got.ids.shape)
            return
        flipped = (ids != got.ids).any(axis=1)
        same = ~flipped
        yield self._margins(value, prompt, (ids, got.ids), (margin, got.margin), flipped)
        self._same[prompt] &= same
        if same.any():
            yield self._weights(value, prompt, (weights, got.weights), ids, np.flatnonzero(same))

    def _margins(
        self,
        value: LayerValue,
        prompt: int,
        ids: tuple[Array, Array],
        margins: tuple[Array, Array],
        flipped: NDArray[np.bool_],
    ) -> Measurement:
        crossed = np.where(flipped, margins[0], 0.0)
        crossed[flipped & np.isnan(margins[1])] = np.inf
        worst = int(crossed.argmax())
        moved = np.abs(margins[0] - margins[1])[~flipped & np.isfinite(margins[1])]
        noise = max(float(crossed[worst]), float(moved.max(initial=0)))
        where = Place(worst, None, ids[0][worst].tolist(), ids[1][worst].tolist()) if flipped.any() else None
        return Measurement(
            "router.margin", prompt, value.name, float(crossed[worst]), noise, where, int(flipped.sum()),
            f"{int(flipped.sum())} of {len(flipped)} tokens went to other experts",
            float((ids[0][:, :, None] == ids[1][:, None, :]).any(axis=2).mean()),
        )  # fmt: skip

    def _weights(
        self,
        value: LayerValue,
        prompt: int,
        weights: tuple[Array, Array],
        ids: Array,
        same: NDArray[np.int64],
    ) -> Measurement:
        mine, got = (each[same].astype(np.float64) for each in weights)
        difference = np.abs(got - mine)
        difference[np.isnan(difference)] = np.inf
        error = np.sqrt(np.square(difference).sum(axis=1)) / np.sqrt(np.square(mine).sum(axis=1))
        row = int(error.argmax())
        column = int(difference[row].argmax())
        where = Place(
            int(same[row]), int(ids[same[row], column]), float(mine[row, column]), float(got[row, column])
        )  # fmt: skip
        largest = float(error[row])
        return Measurement("router.weights", prompt, value.name, largest, largest, where)


def _kept(golden: Golden, name: str, place: slice) -> dict[str, Array]:
    """What a golden has of a value's rows."""
    arrays = golden.arrays
    return {
        key: arrays[f"{name}.{key}"][place] for key in ("norm", "projections", "values") if f"{name}.{key}" in arrays
    }


def _misshapen(metric: str, name: str, prompt: int, expected: tuple[int, ...], got: tuple[int, ...]) -> Measurement:
    where = Place(0, None, list(expected), list(got))
    return Measurement(metric, prompt, name, float("inf"), float("inf"), where, note=_RIGHT_SIZE)
