"""Which backend builds which precision today; what is not here is refused before anything is read."""

from __future__ import annotations

from dsv3export.engine.manifest import Provider
from dsv3export.errors import BackendError, RequestError
from dsv3export.graphs.lower.onnxruntime.providers import schemes
from dsv3export.recipe import Recipe

BACKENDS = ("onnxruntime", "tensorrt-rtx", "tensorrt")
BUILT = ("onnxruntime",)


def check_buildable(backend: str, recipe: Recipe, provider: Provider = "cpu") -> None:
    """Raises BackendError, naming the first component that the backend cannot build as the recipe wants it."""
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}", expected=f"one of {', '.join(BACKENDS)}")
    if backend not in BUILT:
        raise BackendError(
            f"backend {backend}", expected="onnxruntime, the one that this version builds", got=backend,
            fix="Use --backend onnxruntime.",
        )  # fmt: skip
    for component, scheme in schemes(recipe):
        if provider == "cpu" and (component, scheme.format, scheme.activations) == ("routed_experts", "int8", "none"):
            raise BackendError(
                f"{recipe.source}: {component} as int8 with activations none on {backend}",
                expected="activations int8: ONNX Runtime's QMoE rounds them at 8 bits whatever it is asked",
            )
        if scheme.activations == "1x128":
            raise BackendError(
                f"{recipe.source}: {component} with activations 1x128 on {backend}",
                expected="activations none, which this version builds; the executor rounds activations",
            )


def check_calibration(recipe: Recipe, given: bool) -> None:
    """Raises RequestError where a recipe needs a calibration text that is not given, or is given one in vain."""
    calibrated = [component for component, scheme in schemes(recipe) if scheme.needs_calibration]
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
