"""What torchrun tells a process of its place in the job, and which network interface the ranks are to use."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from dsv3export.errors import RequestError

_LOOPBACK = "lo"
_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Place:
    """A process's place in a job.

    Attributes:
        rank, world_size: Among all.
        local_world_size: Ranks on this machine.
        address, port: Of the store that all meet at.
        agent_store: Whether the launcher runs that store; otherwise rank 0 does.
        attempt: How often the launcher has started the ranks again.
    """

    rank: int
    world_size: int
    local_world_size: int
    address: str
    port: int
    agent_store: bool
    attempt: int


def in_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as a rank."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def place_in_job(environment: Mapping[str, str] = os.environ) -> Place:
    """From the variables that torchrun sets. Raises RequestError where one is missing or no number."""
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    local = _number(environment, "LOCAL_WORLD_SIZE", 1)
    if not 0 <= rank < world_size:
        raise RequestError("RANK", expected=f"0 to {world_size - 1}, as WORLD_SIZE is {world_size}", got=str(rank))
    if "MASTER_ADDR" not in environment:
        raise _missing("MASTER_ADDR")
    port = _number(environment, "MASTER_PORT")
    agent_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)
    return Place(rank, world_size, local, environment["MASTER_ADDR"], port, agent_store, attempt)


def choose_interface(place: Place) -> None:
    """Has gloo listen on one address only; what the user set in GLOO_SOCKET_IFNAME stays.

    That is loopback where all ranks are on one machine, and otherwise the address that leads to the store.
    """
    if os.environ.get(_INTERFACE):
        return
    if place.local_world_size == place.world_size:
        os.environ[_INTERFACE] = _LOOPBACK
        return
    name = _interface_of(_own_address(place))
    if name:
        os.environ[_INTERFACE] = name


def _own_address(place: Place) -> str:
    """This machine's address on the way to the store; no packet is sent."""
    try:
        found = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)
        family, _, _, _, target = found[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RequestError(
            f"MASTER_ADDR {place.address}", expected="a machine that can be reached", got=str(error)
        ) from None


def _interface_of(address: str) -> str | None:
    """The interface that has an IPv4 address; None where none has."""
    import fcntl
    import struct

    siocgifaddr = 0x8915  # linux/sockios.h: the address of an interface
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, siocgifaddr, struct.pack("256s", name[:15].encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None:
        if default is None:
            raise _missing(name)
        return default
    if not text.isdigit():
        raise RequestError(name, expected="a number, as torchrun sets it", got=repr(text))
    return int(text)


def _missing(name: str) -> RequestError:
    return RequestError(f"the environment variable {name}", expected="what torchrun sets", got="none")
