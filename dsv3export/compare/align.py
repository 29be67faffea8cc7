"""The values of a stage in the form in which two models' are compared: by provenance name, a row for each token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.stages import Values

Array = NDArray[Any]
# How the names of a router's values end: the chosen experts, their weights, and what the choice goes by.
ROUTER_IDS, ROUTER_WEIGHTS, ROUTER_LOGITS = "mlp.gate.ids", "mlp.gate.weights", "mlp.gate.linear"


def is_compared(name: str, value: Array) -> bool:
    """Numbers of the model, and the choices of its routers; not the arithmetic on shapes and positions."""
    return name.endswith(ROUTER_IDS) or (np.issubdtype(value.dtype, np.floating) and value.ndim > 0)


def token_rows(name: str, values: Values, tokens: int) -> Array:
    """A value as [S, numbers of a token]; router weights by expert."""
    value = dense_weights(name, values) if name.endswith(ROUTER_WEIGHTS) else values[name]
    return value.reshape(tokens, -1)


def dense_weights(name: str, values: Values) -> Array:
    """Router weights [S, k] by expert, [S, E]: the order of a token's experts does not matter."""
    prefix = name.removesuffix(ROUTER_WEIGHTS)
    ids, logits = values[f"{prefix}{ROUTER_IDS}"], values[f"{prefix}{ROUTER_LOGITS}"]
    dense = np.zeros(logits.shape, values[name].dtype)
    np.put_along_axis(dense, ids, values[name], axis=1)
    return dense
