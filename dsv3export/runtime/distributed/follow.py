"""What a rank other than 0 does until the end: takes commands and runs its part of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dsv3export.runtime.distributed.commands import MESSAGE_BYTES, Command, CommandReader, Kind
from dsv3export.runtime.latent_cache import LatentCache

if TYPE_CHECKING:
    from dsv3export.runtime.distributed.communicator import Communicator
    from dsv3export.runtime.distributed.worker import Worker

ROOT = 0


def follow(worker: Worker, communicator: Communicator, hidden_size: int) -> None:
    """Returns when rank 0 says so. Raises JobFault when another rank is gone, BackendError when a step fails here."""
    caches: dict[int, LatentCache] = {}
    while True:
        command = _next_command(communicator)
        if command.kind is Kind.END:
            return
        if command.kind is Kind.REPORT:
            figures = worker.figures(sum(cache.nbytes for cache in caches.values()))
            communicator.send(figures.to_array(), ROOT, "control")
        elif command.kind is Kind.DROP_CACHE:
            caches.pop(command.cache, None)
        elif command.kind is Kind.COPY_ROWS:
            _copy_rows(command, caches)
        elif layout := worker.cache_layout(command.kind):
            if command.cache not in caches:
                caches[command.cache] = LatentCache(layout, command.slots, command.capacity)
            hidden = None
            if command.kind is Kind.DRAFT:
                hidden = np.empty((*command.input_ids.shape, hidden_size), np.float32)
                communicator.receive(hidden, ROOT)
            for result in worker.compute(command, caches[command.cache], hidden):
                communicator.send(result, ROOT)


def _copy_rows(command: Command, caches: dict[int, LatentCache]) -> None:
    copy = command.row_copy
    source = caches.get(copy.source)
    if source is None:  # this rank has no part in what such caches are for
        return
    if command.cache not in caches:
        caches[command.cache] = LatentCache(source.layout, command.slots, command.capacity)
    caches[command.cache].copy_rows(command.first_slot, copy.start, source, copy.slot, copy.rows)


def _next_command(communicator: Communicator) -> Command:
    first = np.empty(MESSAGE_BYTES, np.uint8)
    communicator.receive(first, ROOT, "control")
    reader = CommandReader(first)
    if not reader.second_bytes:
        return reader.command()
    second = np.empty(reader.second_bytes, np.uint8)
    communicator.receive(second, ROOT, "control")
    return reader.command(second)
