"""Starts the ranks of one machine, through the elastic launcher behind torchrun."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import uuid
from collections.abc import Sequence

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dsv3export.runtime.distributed.faults import JobFault
from dsv3export.runtime.distributed.torch_store import serve_store, watch_prefix
from dsv3export.runtime.distributed.watch import EXIT_CODE, SAID

_LOOPBACK = "127.0.0.1"
_BACKEND = "dsv3export-loopback"
_SIGNALLED = 128


class _Loopback(RendezvousHandler):
    """One machine meets itself, at a store that listens on loopback only: torch's own handlers listen everywhere."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._store: TCPStore = serve_store(_LOOPBACK, 0)

    def was_said(self) -> bool:
        """Whether a rank has told the user of a fault."""
        return PrefixStore(watch_prefix(0), self._store).check([SAID])

    def get_backend(self) -> str:
        return _BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        where = RendezvousStoreInfo(_LOOPBACK, self._store.port)
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, where)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


_handlers: dict[str, _Loopback] = {}


def _loopback(parameters: RendezvousParameters) -> RendezvousHandler:
    return _handlers.setdefault(parameters.run_id, _Loopback(parameters.run_id))


def launch(arguments: Sequence[str], ranks: int, shutdown_seconds: int) -> int:
    """Runs `dsv3export ARGUMENTS` as that many ranks of this machine; their exit code, rank 0's before others'.

    Args:
        shutdown_seconds: How long a rank may take to end when it is told to.

    Raises JobFault where a rank was ended by a signal and none of the others has said so.
    """
    logging.disable(logging.ERROR)  # the ranks say what there is to say
    rendezvous_handler_registry.register(_BACKEND, _loopback)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=uuid.uuid4().hex, rdzv_backend=_BACKEND,
        rdzv_endpoint=f"{_LOOPBACK}:0", local_addr=_LOOPBACK, max_restarts=0, shutdown_timeout=shutdown_seconds,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "dsv3export", *arguments)
        return 0
    except SignalException as error:
        return _SIGNALLED + int(error.sigval)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        ended = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
        if not ended:
            return codes.get(0, next(iter(codes.values())))
        if not _handlers[config.run_id].was_said():
            rank, number = next(iter(ended.items()))
            raise JobFault(rank, socket.gethostname(), f"ended by {signal.Signals(number).name}") from None
        return EXIT_CODE
    finally:
        _handlers.pop(config.run_id, None)
