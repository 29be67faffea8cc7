"""Recipes: which precision each component of a model gets.

`Recipe.for_precision("int4")` is a preset, `Recipe.from_toml(path)` a file of choices on top of one:

    precision = "int4"                 # the preset that the rest changes
    cache = "fp8"                      # what the latent cache is kept in: fp32 (the default), bf16, f16 or fp8

    [components.attention]
    format = "int8"                    # starts from this format's defaults; without it, the preset's scheme is changed
    group_size = "channel"             # one scale per output channel; or a number of columns
    symmetric = false
    activations = "int8"
    method = "rtn"

    [[layers]]                         # the same for layers 3 and 4 only; wins over all that follow
    start = 3
    stop = 5
    [layers.components.attention]
    format = "bf16"

    [first_layers]                     # the same for some layers only; they win over [last_layers]
    count = 1
    [first_layers.components.routed_experts]
    format = "int8"

    [last_layers]
    count = 2
    [last_layers.components.routed_experts]
    group_size = 32

`scheme.OPTIONS` is the table of what each format may say. Norms, router and rotary factors are float32 in all recipes.
"""

from dsv3export.recipe.recipe import LayerGroup, LayerRange, Recipe
from dsv3export.recipe.scheme import (
    CACHE_FORMATS,
    COMPONENTS,
    LAYER_COMPONENTS,
    PRECISIONS,
    Activations,
    CacheFormat,
    Component,
    Format,
    Method,
    Precision,
    RecipeError,
    Scheme,
)

__all__ = [
    "CACHE_FORMATS",
    "COMPONENTS",
    "LAYER_COMPONENTS",
    "PRECISIONS",
    "Activations",
    "CacheFormat",
    "Component",
    "Format",
    "LayerGroup",
    "LayerRange",
    "Method",
    "Precision",
    "Recipe",
    "RecipeError",
    "Scheme",
]
