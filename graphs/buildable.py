"""Whether a recipe and a calibration text go together."""

from __future__ import annotations

from dsv3export.errors import RequestError
from dsv3export.recipe import Recipe


def check_calibration(recipe: Recipe, given: bool) -> None:
    """Raises RequestError where a recipe needs a calibration text that is not given, or is given one in vain."""
    calibrated = [component for component, scheme in recipe.schemes() if scheme.needs_calibration]
    if calibrated and not given:
        raise RequestError(
            f"{recipe.source}: {calibrated[0]} by gptq", expected="a calibration text", got="none",
            fix="Give --calibration FILE, or choose the method mse.",
        )  # fmt: skip
    if given and not calibrated:
        raise RequestError(
            "calibration", expected="a recipe with an int8 or int4 component by gptq", got=recipe.precision,
            fix="Leave --calibration out, or choose --precision int4 or int8.",
        )  # fmt: skip
