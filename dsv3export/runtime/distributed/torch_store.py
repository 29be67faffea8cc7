"""The store that the ranks of a job meet at: torch's, run by the launcher or by rank 0."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, TCPStore

from dsv3export.errors import ResourceError
from dsv3export.runtime.distributed.environment import Place

_CONNECT_SECONDS = 60.0


def listen_on(address: str, port: int) -> socket.socket:
    """A socket that listens on that address only; torch's own would on all. Raises ResourceError."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family)
    except OSError as error:
        raise ResourceError(f"cannot listen on {address}:{port}", got=error.strerror or str(error)) from None


def serve_store(address: str, port: int) -> TCPStore:
    """A new store at that address; 0 finds a free port. Raises ResourceError where it cannot be had."""
    listening = listen_on(address, port)
    found = listening.getsockname()[1]
    timeout = timedelta(seconds=_CONNECT_SECONDS)
    return TCPStore(
        address, found, is_master=True, timeout=timeout, wait_for_workers=False, multi_tenant=False,
        master_listen_fd=listening.detach(), use_libuv=True,
    )  # fmt: skip


class JobStores:
    """One rank's connections to the store: one for the watch and one for all else, as each does one thing at a time.

    Raises ResourceError where the store cannot be reached.
    """

    def __init__(self, place: Place) -> None:
        self._server = None
        if not place.agent_store and place.rank == 0:
            self._server = serve_store(place.address, place.port)
        self.watch = PrefixStore(watch_prefix(place.attempt), _connected(place))
        self.ranks = PrefixStore(f"dsv3export/{place.attempt}/ranks", _connected(place))


def watch_prefix(attempt: int) -> str:
    """Where in the store the ranks' watch writes, when the launcher has started them again that often."""
    return f"dsv3export/{attempt}/watch"


def _connected(place: Place) -> TCPStore:
    try:
        return TCPStore(
            place.address, place.port, is_master=False, timeout=timedelta(seconds=_CONNECT_SECONDS),
            wait_for_workers=False,
        )  # fmt: skip
    except RuntimeError as error:
        raise ResourceError(
            f"rank {place.rank}: the store at {place.address}:{place.port}", expected="an answer",
            got=" ".join(str(error).split())[:160], fix="Start all ranks with the same rendezvous endpoint.",
        ) from None  # fmt: skip
