"""What a plugin's work costs at least: the bytes that have to move, the operations, and the time of the larger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dsv3export.plugins.kernels.plugin import Attributes, Plugin, TensorType
from dsv3export.plugins.kernels.sizes import known, product
from dsv3export.sizing.devices import Device, MatrixType

_BITS = {"F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "I64": 64, "I32": 32, "I8": 8, "U8": 8}


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Args:
        bytes: Read and written once each.
        flops: Of matrix products; a multiplication and an addition are two.
        type: Of the products' factors.
    """

    bytes: int
    flops: int
    type: MatrixType

    def floor(self, device: Device) -> float:
        """Seconds that it takes at least."""
        return max(self.bytes / device.bandwidth, self.flops / device.flops[self.type])


def cost(plugin: Plugin, inputs: Sequence[TensorType], attributes: Attributes) -> Cost:
    """The cost of a plugin on inputs of known shapes: every slot's sequence full, every expert as likely."""
    given = dict(zip((port.name for port in plugin.inputs), inputs, strict=True))
    outputs = plugin.outputs(inputs, attributes)
    aliases = dict(plugin.aliases)
    written = [size_of(each) for place, each in enumerate(outputs) if place not in aliases]
    read = {name: size_of(each) for name, each in given.items()}
    if aliases:
        # Rows of the cache are written, about as many bytes as they bring; the rest stays untouched.
        read = {name: size for name, size in read.items() if name not in ("cache", "side")}
        written = [size_of(given[name]) for name in ("kv_c", "k_pe") if name in given]
    if "owners" in given:
        hit = _experts_hit(given)
        read = {name: int(size * hit) if name.split("_")[0] in _BANKS else size for name, size in read.items()}
    flops = next((rule(given, outputs) for start, rule in _FLOPS.items() if plugin.name.startswith(start)), 0)
    factors = "fp8" if inputs[0].dtype == "F8_E4M3" and not aliases else "bf16"
    return Cost(sum(read.values()) + sum(written), flops, "fp8" if factors == "fp8" else "bf16")


def size_of(tensor: TensorType) -> int:
    """Bytes of a tensor."""
    return known(product(tensor.shape)) * _BITS[tensor.dtype] // 8


_BANKS = ("gate", "up", "down")


def _experts_hit(given: Mapping[str, TensorType]) -> float:
    """The share of experts that some slot goes to, if each slot's expert is drawn at random."""
    bank = next(given[name] for name in _BANKS if name in given)
    experts, slots = known(bank.shape[0]), _slots(given)
    return 1.0 - (1.0 - 1.0 / experts) ** slots


def _slots(given: Mapping[str, TensorType]) -> int:
    """Pairs of a token and an expert: the hidden rows; before those there are, blocks that are half filled."""
    if "hidden" in given:
        return known(given["hidden"].shape[0])
    return known(given["slots"].shape[0]) // 2


def _linear(given: Mapping[str, TensorType], outputs: Sequence[TensorType]) -> int:
    """2 * rows * N * K, of parts too."""
    x = given.get("x", given.get("a"))
    assert x is not None
    return 2 * known(product(x.shape)) * known(given["weight"].shape[0])


def _gate_up(given: Mapping[str, TensorType], outputs: Sequence[TensorType]) -> int:
    return 4 * known(product(outputs[0].shape)) * known(given["x"].shape[-1])


def _down(given: Mapping[str, TensorType], outputs: Sequence[TensorType]) -> int:
    return 2 * known(product(outputs[0].shape)) * known(given["hidden"].shape[-1])


def _split(given: Mapping[str, TensorType], outputs: Sequence[TensorType]) -> int:
    """Each query's products with the rows of its slot, latent and rotary, and the sum of their latents."""
    q, rope = given["q"], known(given["q_pe"].shape[-1])
    return 2 * known(product(q.shape[:-1])) * known(given["cache"].shape[-2]) * (2 * known(q.shape[-1]) + rope)


def _prefill(given: Mapping[str, TensorType], outputs: Sequence[TensorType]) -> int:
    """Half of all pairs of queries and keys, on average, that a causal mask leaves of a first chunk."""
    q, rope = given["q"], known(given["q_pe"].shape[-1])
    seen = known(given["kv"].shape[1]) - known(q.shape[1]) / 2
    return int(2 * known(product(q.shape[:-1])) * seen * (known(given["kv"].shape[-1]) + rope))


_FLOPS: Mapping[str, Callable[[Mapping[str, TensorType], Sequence[TensorType]], int]] = {
    "Fp8BlockGemm": _linear,
    "Fp8WeightGemm": _linear,
    "LinearInt": _linear,
    "MoEGateUp": _gate_up,
    "MoEDown": _down,
    "MlaSplit": _split,
    "MlaPrefill": _prefill,
}
"""How the name of a plugin begins -> operations of its products."""
