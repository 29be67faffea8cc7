"""The latent caches of a session on its device: a buffer for each layer, made when a cache is first used."""

from __future__ import annotations

from collections.abc import Callable
from weakref import finalize, ref

from dsv3export.runtime.device import Device, DeviceBuffer, Stream
from dsv3export.runtime.latent_cache import LatentCache
from dsv3export.runtime.tensorrt.memory import MemoryNeeds, check_slots
from dsv3export.runtime.tensorrt.signature import Signature


class DeviceCaches:
    """The buffers, by cache.

    Args:
        where: The engine, for messages.
        dropped: Told the number (`id`) of a cache that is gone, before its memory is given back.
    """

    def __init__(
        self,
        signature: Signature,
        needs: MemoryNeeds,
        device: Device,
        stream: Stream,
        where: str,
        dropped: Callable[[int], None],
    ) -> None:
        self._signature, self._needs, self._where = signature, needs, where
        self._device, self._stream, self._dropped = device, stream, dropped
        self._buffers: dict[int, dict[str, DeviceBuffer]] = {}

    def addresses(self, cache: LatentCache, slots: range) -> dict[str, int]:
        """Where the rows of some slots lie, for each layer; what an update hands out is the same memory."""
        offset = slots.start * self._signature.slot_bytes
        places = {name: buffer.address + offset for name, buffer in self._of(cache).items()}
        return places | {self._signature.caches[name]: address for name, address in places.items()}

    def _of(self, cache: LatentCache) -> dict[str, DeviceBuffer]:
        """Zeros at first: a masked row counts 0 times, which is NaN for a NaN that lies in fresh memory.

        Of the cache's own arrays no page is touched. Raises ResourceError where the memory cannot be had.
        """
        number = id(cache)
        if number not in self._buffers:
            check_slots(self._where, cache.slots, self._needs, self._device)
            nbytes = cache.slots * self._signature.slot_bytes
            buffers = {name: self._device.allocate(nbytes) for name in self._signature.caches}
            for buffer in buffers.values():
                self._stream.zero(buffer.address, nbytes)
            self._buffers[number] = buffers
            finalize(cache, _drop, ref(self), number)
        return self._buffers[number]

    def drop(self, number: int) -> None:
        """Gives a cache's memory back."""
        self._dropped(number)
        self._buffers.pop(number, None)


def _drop(caches: ref[DeviceCaches], number: int) -> None:
    alive = caches()
    if alive is not None:
        alive.drop(number)
