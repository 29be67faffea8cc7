"""Plugins applied to torch tensors, launched by the interpreter or by the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels.plugin import Attribute, Attributes, Launch, Plugin, TensorType
from dsv3export.plugins.kernels.sizes import known

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""safetensors dtype name -> torch dtype."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Run = Callable[[Launch, Sequence[Tensor], Sequence[Tensor]], None]
Choose = Callable[[Plugin, Sequence[TensorType], Attributes], int]
# Every byte 0xFF: a NaN of each float type, and -1 or 255.
_POISON = 0xFF


class TorchCall:
    """Applies plugins to torch tensors; implements `Call`.

    Args:
        run: Executes a launch on inputs and outputs.
        target: The compute capability that kernels are chosen for.
        tile: Which of a plugin's tiles to use, counted modulo their number; or what chooses it for given types.
        poison: Fill outputs with NaN before each launch, so that an element that no program writes shows.
    """

    def __init__(self, run: Run, target: int, tile: int | Choose = 0, poison: bool = True) -> None:
        self.run, self.target, self.poison = run, target, poison
        self._choose: Choose = tile if callable(tile) else lambda *_: tile

    def __call__(self, plugin: Plugin, inputs: Sequence[Tensor], **attributes: Attribute) -> tuple[Tensor, ...]:
        types = [tensor_type(tensor) for tensor in inputs]
        check_inputs(plugin, types)
        results = plugin.outputs(types, attributes)
        aliases = dict(plugin.aliases)
        tensors = [tensor.contiguous() for tensor in inputs]
        outputs = [
            tensors[aliases[place]] if place in aliases else self._empty(result, tensors[0].device)
            for place, result in enumerate(results)
        ]
        tile = plugin.tiles[self._choose(plugin, types, attributes) % len(plugin.tiles)]
        self.run(plugin.launch(types, results, attributes, tile, self.target), tensors, outputs)
        return tuple(outputs)

    def _empty(self, result: TensorType, device: torch.device) -> Tensor:
        shape = [known(size) for size in result.shape]
        empty = torch.empty(shape, dtype=DTYPES[result.dtype], device=device)
        if self.poison:
            empty.view(torch.uint8).fill_(_POISON)
        return empty


def tensor_type(tensor: Tensor) -> TensorType:
    """The type of a torch tensor."""
    return TensorType(NAMES[tensor.dtype], tuple(tensor.shape))


def check_inputs(plugin: Plugin, types: Sequence[TensorType]) -> None:
    """Raises InternalError where a plugin is given another number of tensors or other dtypes than it takes."""
    for port, given in zip(plugin.inputs, types, strict=True):
        if given.dtype not in port.dtypes:
            raise InternalError(f"{plugin.name}.{port.name} takes {', '.join(port.dtypes)}, got {given.dtype}")
