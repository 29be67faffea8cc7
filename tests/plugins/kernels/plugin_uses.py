"""How networks use each plugin: some sizes have names, as in a network with dynamic shapes, and there are some runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from dsv3export.plugins.kernels.plugin import Attribute, TensorType

Shape = tuple["int | str", ...]


@dataclass(frozen=True)
class PluginUse:
    """A plugin in a network.

    Args:
        inputs: safetensors dtype and shape.
        runs: What the named sizes are, run by run; the first is what TensorRT times.
    """

    plugin: str
    inputs: Sequence[tuple[str, Shape]]
    runs: Sequence[Mapping[str, int]]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def types(self, sizes: Mapping[str, int]) -> list[TensorType]:
        """The inputs' types in a run."""
        return [
            TensorType(dtype, tuple(sizes[size] if isinstance(size, str) else size for size in shape))
            for dtype, shape in self.inputs
        ]

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.plugin}-{self.inputs[0][0]}-{'x'.join(str(size) for size in self.inputs[0][1])}"


_BATCHES = ({"B": 2, "S": 3}, {"B": 1, "S": 1}, {"B": 8, "S": 129})

USES = (
    PluginUse("QuantiseActivations", [("BF16", ("B", "S", 300))], _BATCHES),
    PluginUse("QuantiseActivations", [("F16", ("B", 128))], _BATCHES),
    PluginUse(
        "Fp8BlockGemm",
        [("F8_E4M3", ("B", "S", 300)), ("F32", ("B", "S", 3)), ("F8_E4M3", (130, 300)), ("F32", (2, 3))],
        _BATCHES,
        {"dtype": "BF16"},
    ),
    PluginUse("Fp8WeightGemm", [("F16", ("B", "S", 256)), ("F8_E4M3", (160, 256)), ("F32", (2, 2))], _BATCHES),
)
