"""Whether an engine fits a device, said before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3export.errors import ResourceError
from dsv3export.runtime.device import Device, MemoryInfo


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes on the device.

    Attributes:
        weights: All of them.
        steps: What a step needs beside weights and cache: TensorRT's intermediates, and values between layers.
        cache_per_slot: Of the rows that a sequence may have.
        rows: How many these are.
    """

    weights: int
    steps: int
    cache_per_slot: int
    rows: int

    def __add__(self, other: MemoryNeeds) -> MemoryNeeds:
        """Of two programs whose sequences are the same ones."""
        cache = self.cache_per_slot + other.cache_per_slot
        return MemoryNeeds(self.weights + other.weights, self.steps + other.steps, cache, self.rows)

    @property
    def least(self) -> int:
        """With one sequence."""
        return self.weights + self.steps + self.cache_per_slot


def check_memory(
    where: str, needs: MemoryNeeds, device: Device, parameters: int, drafts: MemoryNeeds | None = None
) -> None:
    """Raises ResourceError, with what would fit, where not even one sequence does.

    Args:
        parameters: Of the model's part that the engine has.
        drafts: What of the needs is the MTP layer's.
    """
    memory = device.memory()
    if needs.least <= memory.free:
        return
    raise ResourceError(
        f"{where} on {device.name}",
        expected=(
            f"{_size(needs.least)} of free memory: weights {_size(needs.weights)}, intermediates {_size(needs.steps)}, "
            f"the cache of one sequence of {needs.rows} tokens {_size(needs.cache_per_slot)}"
        ),
        got=f"{_size(memory.free)} of {_size(memory.total)}",
        fix=_what_fits(needs, memory, parameters, drafts.least if drafts else 0),
    )


def check_engines(where: str, nbytes: int, device: Device) -> None:
    """Raises ResourceError where engines that hold their weights do not fit: TensorRT loads them as a whole.

    Args:
        nbytes: Of the engines' files.
    """
    memory = device.memory()
    if nbytes > memory.free:
        raise ResourceError(
            f"{where} on {device.name}", expected=f"{_size(nbytes)} of free memory for engines that hold their weights",
            got=f"{_size(memory.free)} of {_size(memory.total)}",
            fix="Build it without --bake-weights, which takes half of that." if nbytes < 2 * memory.total
            else "Take a device with more memory: dsv3export plan says which.",
        )  # fmt: skip


def check_slots(where: str, slots: int, needs: MemoryNeeds, device: Device) -> None:
    """Raises ResourceError, with how many would fit, where the caches of so many sequences do not."""
    free = device.memory().free
    if slots * needs.cache_per_slot > free:
        fit = free // needs.cache_per_slot
        raise ResourceError(
            f"{where} on {device.name}: latent cache of {slots} sequences of {needs.rows} tokens",
            expected=f"{_size(slots * needs.cache_per_slot)} of free memory", got=_size(free),
            fix=f"Run {fit} at once." if fit else "Free memory on the device, or rebuild for shorter sequences.",
        )  # fmt: skip


def _what_fits(needs: MemoryNeeds, memory: MemoryInfo, parameters: int, drafts: int) -> str:
    if drafts and needs.least - drafts <= memory.free:
        return "Without drafts it would fit: leave --speculate out."
    if needs.least <= memory.total:
        return "Other programs use the rest of it: end them, see nvidia-smi."
    room = memory.total - needs.steps - needs.weights
    rows = room * needs.rows // needs.cache_per_slot if room > 0 else 0
    if rows:
        return f"A sequence of {rows} tokens would fit: rebuild it with --max-length {rows}."
    bits = (memory.total - needs.steps - needs.cache_per_slot) * 8 / parameters
    if bits > 0:
        return f"Weights of {bits:.1f} bits would fit: choose a narrower precision, and see dsv3export plan."
    return "Take a device with more memory: dsv3export plan says which."


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
