"""The scheme of each component at each precision."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3export.recipe.scheme import COMPONENTS, Component, Format, Precision, Scheme

# Precision -> format of the decoder layers, of the head, of the embedding. The head decides between tokens, so it is
# kept at 8 bits; of the embedding a row is looked up, which costs nothing at 16 bits.
_FORMATS: Mapping[Precision, tuple[Format, Format, Format]] = {
    "fp32": ("fp32", "fp32", "fp32"),
    "bf16": ("bf16", "bf16", "bf16"),
    "fp8": ("fp8", "bf16", "bf16"),
    "int8": ("int8", "int8", "bf16"),
    "int4": ("int4", "int8", "bf16"),
}


def preset(precision: Precision, calibrated: bool = False) -> dict[Component, Scheme]:
    """The schemes of all components, each with its format's defaults."""
    layers, head, embedding = _FORMATS[precision]
    formats = dict.fromkeys(COMPONENTS, layers) | {"head": head, "embedding": embedding}
    return {component: Scheme.of(formats[component], calibrated=calibrated) for component in COMPONENTS}
