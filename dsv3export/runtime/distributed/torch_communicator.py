"""The transport: torch.distributed with gloo. With `torch_launch` the only module of the runtime that imports torch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from dsv3export.dtypes import NUMPY
from dsv3export.engine.parallel import GROUPS, Layout
from dsv3export.runtime.distributed.communicator import Array, Kind, Ranks, Traffic
from dsv3export.runtime.distributed.watch import Watch

# An idle rank waits for a command as long as it takes; that a rank is gone is found out by the watch.
_FOREVER = timedelta(days=365)
_TAGS: dict[Kind, int] = {"send": 0, "control": 1, "gather": 2}
_IN_FLIGHT = 16  # messages to each rank


class TorchCommunicator:
    """A `Communicator` over gloo: arrays in the host's memory, TCP between the ranks.

    Args:
        store: That all ranks met at.
        rank: This one.
        layout: How all lie; a process group is made for each of its groups.
        watch: Knows what happened when a connection breaks.
    """

    def __init__(self, store: Store, rank: int, layout: Layout, watch: Watch) -> None:
        self.traffic = Traffic()
        self._rank, self._layout, self._watch = rank, layout, watch
        self._sent: deque[tuple[dist.Work, torch.Tensor]] = deque()
        logging.getLogger("torch.distributed").setLevel(logging.ERROR)
        torch.set_num_threads(1)
        with self._explained():
            dist.init_process_group("gloo", store=store, rank=rank, world_size=layout.world, timeout=_FOREVER)
            self._groups = {group: dist.new_group(list(group), timeout=_FOREVER) for group in _groups(layout)}

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._layout.world

    def all_reduce(self, array: Array, group: Ranks) -> None:
        """See `Communicator`."""
        if len(group) == 1:
            return
        with self._explained(), self.traffic.waiting():
            dist.all_reduce(_tensor(array), group=self._groups[tuple(group)])
        self.traffic.reduced(array.nbytes, len(group))

    def gather(self, part: Array, parts: Sequence[Array] | None, group: Ranks) -> None:
        """See `Communicator`."""
        if parts is None:
            self.send(part, group[0], "gather")
            return
        parts[0][...] = part
        for rank, target in zip(group[1:], parts[1:], strict=True):
            self.receive(target, rank, "gather")

    def send(self, array: Array, to: int, kind: Kind = "send") -> None:
        """See `Communicator`."""
        tensor = torch.from_numpy(np.array(array, order="C").reshape(-1).view(np.uint8))
        with self._explained():
            while len(self._sent) >= _IN_FLIGHT * self.world_size:
                self._sent.popleft()[0].wait()
            work = dist.isend(tensor, to, tag=_TAGS[kind])
            assert work is not None  # only where this rank is not in the group
            self._sent.append((work, tensor))
        self.traffic.message(array.nbytes, kind)

    def receive(self, array: Array, source: int, kind: Kind = "send") -> None:
        """See `Communicator`."""
        tensor = torch.from_numpy(array.reshape(-1).view(np.uint8))
        with self._explained():
            if kind == "control":
                dist.recv(tensor, source, tag=_TAGS[kind])
                return
            with self.traffic.waiting():
                dist.recv(tensor, source, tag=_TAGS[kind])

    def barrier(self) -> None:
        """See `Communicator`."""
        with self._explained():
            dist.barrier()

    def computing(self) -> AbstractContextManager[None]:
        """See `Communicator`."""
        return self._watch.computing()

    def abort(self, cause: str) -> None:
        """See `Communicator`."""
        self._watch.tell(cause)

    def close(self) -> None:
        """See `Communicator`."""
        self._sent.clear()
        dist.destroy_process_group()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What torch raises becomes the fault that lies behind it."""
        self._watch.check()
        try:
            yield
        except RuntimeError as error:
            raise self._watch.explain(" ".join(str(error).split())[:160]) from error


def _groups(layout: Layout) -> list[tuple[int, ...]]:
    """Every group of more than one rank, once, in an order that is the same on all ranks."""
    named = (tuple(layout.group(rank, name)) for name in GROUPS for rank in range(layout.world))
    return [group for group in dict.fromkeys(named) if len(group) > 1]


def _tensor(array: Array) -> torch.Tensor:
    """The same memory; bfloat16, which torch does not take from numpy, by its bits."""
    if array.dtype == NUMPY["BF16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
