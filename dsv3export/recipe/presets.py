"""The scheme of each component at each precision."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3export.recipe.scheme import COMPONENTS, Component, Format, Option, Precision, Scheme

# Precision -> format of the decoder layers, of the head, of the embedding. The head decides between tokens, so it is
# kept at 8 bits; of the embedding a row is looked up, which costs nothing at 16 bits.
_FORMATS: Mapping[Precision, tuple[Format, Format, Format]] = {
    "fp32": ("fp32", "fp32", "fp32"),
    "bf16": ("bf16", "bf16", "bf16"),
    "fp8": ("fp8", "bf16", "bf16"),
    "int8": ("int8", "int8", "bf16"),
    "int4": ("int4", "int8", "bf16"),
}
# Most of what int8 loses is the rounding of activations, whose groups are the weights': an outlier costs its group all
# precision, and smaller groups lose less to it. Of the routed experts, most of what is read, smaller ones gain little.
_INT8_GROUPS: Mapping[Component, Option] = {
    "attention": 32,
    "dense_mlp": 32,
    "shared_experts": 32,
    "routed_experts": 64,
    "head": 32,
}


# What a search for scales gains is seen in attention alone, whose inputs are rounded least.
_INT8_SEARCHED: Component = "attention"


def preset(precision: Precision, calibrated: bool = False) -> dict[Component, Scheme]:
    """The schemes of all components: their format's defaults, but for int8's groups and attention's scales."""
    layers, head, embedding = _FORMATS[precision]
    formats = dict.fromkeys(COMPONENTS, layers) | {"head": head, "embedding": embedding}
    options: dict[Component, dict[str, Option]] = {}
    if precision == "int8":
        options = {component: {"group_size": size} for component, size in _INT8_GROUPS.items()}
        if not calibrated:
            options[_INT8_SEARCHED]["method"] = "mse"
    return {component: Scheme.of(formats[component], options.get(component), calibrated) for component in COMPONENTS}
