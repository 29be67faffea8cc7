"""Layers that read or write at indices: gather, scatter, top-k, one-hot, the cache update."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.graphs.lower.tensorrt.replay_layers.layer import DTYPES, Inputs, Layer, Rule, present


def _gather(layer: Layer, inputs: Inputs) -> list[Tensor]:
    data, indices = present(layer, inputs, 0), present(layer, inputs, 1).long()
    mode = layer.choice("mode", "DEFAULT")
    if mode == "ND":
        return [_gather_nd(layer, data, indices)]
    axis = layer.integer("axis", 0) % data.dim()
    indices = _in_bounds(layer, indices, data.shape[axis])
    if mode == "ELEMENT":
        return [data.gather(axis, indices)]
    shared = layer.integer("num_elementwise_dims", 0)
    if shared not in (0, 1):
        raise layer.error(f"num_elementwise_dims is {shared}; in mode DEFAULT 0 or 1")
    if shared == 0:
        picked = data.index_select(axis, indices.reshape(-1))
        return [picked.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))]
    rows = [
        row.index_select(axis - 1, index.reshape(-1)).reshape((*row.shape[: axis - 1], *index.shape, *row.shape[axis:]))
        for row, index in zip(data, indices, strict=True)
    ]
    return [torch.stack(rows)]


def _gather_nd(layer: Layer, data: Tensor, indices: Tensor) -> Tensor:
    shared = layer.integer("num_elementwise_dims", 0)
    if data.shape[:shared] != indices.shape[:shared]:
        raise layer.error(f"the first {shared} axes of {list(data.shape)} and {list(indices.shape)} differ")
    if shared == 0:
        picked: Tensor = data[_coordinates(layer, data, indices)]
        return picked
    flat_data, flat_indices = data.flatten(0, shared - 1), indices.flatten(0, shared - 1)
    rows = [row[_coordinates(layer, row, index)] for row, index in zip(flat_data, flat_indices, strict=True)]
    return torch.stack(rows).reshape((*data.shape[:shared], *rows[0].shape))


def _coordinates(layer: Layer, data: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    return tuple(_in_bounds(layer, index, data.shape[axis]) for axis, index in enumerate(indices.unbind(-1)))


def _in_bounds(layer: Layer, indices: Tensor, length: int) -> Tensor:
    """Negative indices count from the end. What TensorRT does with those out of bounds is not defined: refused here."""
    if indices.numel() and not -length <= int(indices.min()) <= int(indices.max()) < length:
        raise layer.error(f"indices from {int(indices.min())} to {int(indices.max())} into an axis of {length}")
    return indices % length if length else indices


def _scatter(layer: Layer, inputs: Inputs) -> list[Tensor]:
    data, indices, updates = present(layer, inputs, 0), present(layer, inputs, 1).long(), present(layer, inputs, 2)
    if data.dtype != updates.dtype:
        raise layer.error(f"data are {data.dtype}, updates {updates.dtype}")
    if layer.choice("mode") == "ND":
        return [data.index_put(_coordinates(layer, data, indices), updates)]
    axis = layer.integer("axis", 0) % data.dim()
    return [data.scatter(axis, _in_bounds(layer, indices, data.shape[axis]), updates)]


def _top_k(layer: Layer, inputs: Inputs) -> list[Tensor]:
    """Sorted; of equal values that with the lower index comes first."""
    x = present(layer, inputs, 0)
    axis = layer.axis_of_mask("axes", x.dim())
    k = int(inputs[1].item()) if len(inputs) > 1 and inputs[1] is not None else layer.integer("k")
    if not 0 < k <= x.shape[axis]:
        raise layer.error(f"k is {k} on an axis of {x.shape[axis]}")
    values, indices = x.sort(dim=axis, descending=layer.choice("op") == "MAX", stable=True)
    index_type = DTYPES[layer.choice("indices_type", "INT32")]
    return [values.narrow(axis, 0, k), indices.narrow(axis, 0, k).to(index_type)]


def _one_hot(layer: Layer, inputs: Inputs) -> list[Tensor]:
    indices, values, depth = (present(layer, inputs, index) for index in range(3))
    classes, axis = int(depth.item()), layer.integer("axis") % (indices.dim() + 1)
    off, on = values[0], values[1]
    hot = indices.long().unsqueeze(axis) == torch.arange(classes).reshape(
        [-1 if other == axis else 1 for other in range(indices.dim() + 1)]
    )
    return [torch.where(hot, on, off)]


def _kv_cache_update(layer: Layer, inputs: Inputs) -> list[Tensor]:
    """output[b, :, start[b] + s] = update[b, :, s], in the memory of the cache itself."""
    cache, update, start = (present(layer, inputs, index) for index in range(3))
    if layer.choice("cache_mode") != "LINEAR" or layer.choice("update_form", "PADDED_BHND") != "PADDED_BHND":
        raise layer.error("only LINEAR updates in the padded form are replayed")
    if update.dtype != cache.dtype:
        raise layer.error(f"the cache is {cache.dtype}, the update {update.dtype}")
    rows, capacity = update.shape[2], cache.shape[2]
    for slot, first in enumerate(start.tolist()):
        if not 0 <= first <= capacity - rows:
            raise layer.error(f"slot {slot}: {rows} rows from {first} do not fit a capacity of {capacity}")
        cache[slot, :, first : first + rows] = update[slot]
    return [cache]


RULES = {
    "add_gather": Rule(("*", "*", "axis"), _gather),
    "add_gather_v2": Rule(("*", "*", "mode"), _gather),
    "add_kv_cache_update": Rule(("*", "*", "*", "cache_mode"), _kv_cache_update),
    "add_one_hot": Rule(("*", "*", "*", "axis"), _one_hot),
    "add_scatter": Rule(("*", "*", "*", "mode"), _scatter),
    "add_topk": Rule(("*", "op", "k", "axes", "indices_type"), _top_k),
}
