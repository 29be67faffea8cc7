"""A process takes its place among the ranks: meets the others, checks that all have the same engine, loads its part."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np

from dsv3export import __version__
from dsv3export.engine.manifest import Manifest
from dsv3export.engine.parallel import Parallel, rank_folder
from dsv3export.engine.typed_json import parse_json
from dsv3export.errors import EngineError
from dsv3export.runtime.distributed.communicator import Communicator
from dsv3export.runtime.distributed.environment import choose_interface, place_in_job
from dsv3export.runtime.distributed.faults import JobFault
from dsv3export.runtime.distributed.follow import ROOT, follow
from dsv3export.runtime.distributed.load import has_drafts, load_worker, open_rank
from dsv3export.runtime.distributed.processes import end_with_parent
from dsv3export.runtime.distributed.session import DistributedSession, Model
from dsv3export.runtime.distributed.watch import DEFAULT_STEP_TIMEOUT, DEFAULT_TIMEOUT, Watch
from dsv3export.runtime.kernel_choice import KernelChoice

_LOOK_SECONDS = 2.0
# From the first rank to the last: interpreters and torch start slowly on a busy machine.
_START_SECONDS = 60.0
_TERMINATED = 128 + signal.SIGTERM
_POLL_SECONDS = 0.02
Verify = Literal["auto", "full"]


class Member:
    """This process as one rank of a job, with its part of an engine loaded.

    Args:
        engine: The directory of the whole; of it, only this rank's folder is read.
        timeout: Seconds within which the fault of a rank ends the job.
        step_timeout: Seconds that this rank may compute between two exchanges with others.

    Raises:
        ResourceError: The store that all meet at cannot be reached.
        RequestError: The launcher's environment variables are not what they should be.
    """

    def __init__(
        self, engine: Path, timeout: float = DEFAULT_TIMEOUT, step_timeout: float = DEFAULT_STEP_TIMEOUT
    ) -> None:
        place = place_in_job()
        end_with_parent()
        choose_interface(place)
        self._engine, self._timeout = engine, timeout
        from dsv3export.runtime.distributed.torch_store import JobStores  # torch takes seconds

        self._stores = JobStores(place)
        self.rank, self._world_size = place.rank, place.world_size
        where = f"{place.address}:{place.port}"
        self.watch = Watch(self._stores.watch, self.rank, self._world_size, where, timeout, step_timeout)
        self.watch.start()

    def load(self, threads: int | None = None, verify: Verify = "auto", kernels: KernelChoice = "auto") -> None:
        """Loads this rank's part, once all ranks are there and have parts of the same engine.

        Args:
            threads: Compute threads; None takes this rank's share of the machine's cores.
            verify: See `EngineFiles.open`.
            kernels: See `Engine.load`; of this rank.

        Raises:
            JobFault: Another rank is gone or has another engine.
            EngineError, BackendError: This rank's part cannot be loaded; the others are told.
        """
        from dsv3export.runtime.distributed.torch_communicator import TorchCommunicator

        try:
            self.watch.meet(max(self._timeout, _START_SECONDS))
            parallel = self._compare(self._engine)
            self.layout = parallel.layout
            self.communicator: Communicator = TorchCommunicator(
                self._stores.ranks, self.rank, parallel.layout, self.watch
            )
            self.files = open_rank(self._engine, self.rank, verify)
            self.worker = load_worker(self.files, self.communicator, threads, kernels)
            self.drafts = self._learn_of_drafts()
            self.communicator.barrier()
        except JobFault:
            raise
        except BaseException as error:
            self.watch.tell(str(error) or type(error).__name__)
            raise

    def _compare(self, engine: Path) -> Parallel:
        """Whether all ranks have parts of one engine, and run the same program. Raises JobFault where not."""
        parallel = Manifest.read(engine / rank_folder(self.rank)).parallel
        if parallel is None or parallel.layout.world != self._world_size:
            expected = f"one for {self._world_size} ranks"
            got = "one for a single process" if parallel is None else f"{parallel.layout.describe()}"
            raise EngineError(f"engine {engine}", expected=expected, got=got)
        own = {"version": __version__, "digest": parallel.digest}
        store = self._stores.watch
        store.set(f"engine/{self.rank}", json.dumps(own))
        told = [self._told(rank) for rank in range(self._world_size)]
        for rank, (host, version, digest) in enumerate(told):
            if (version, digest) != told[ROOT][1:]:
                expected = f"rank 0 on {told[ROOT][0]} has {told[ROOT][2][:12]} of dsv3export {told[ROOT][1]}"
                cause = f"it has another engine: {digest[:12]} of dsv3export {version}, but {expected}"
                self.watch.report(JobFault(rank, host, cause))
        return parallel

    def _told(self, rank: int) -> tuple[str, str, str]:
        """Host, version and digest of a rank."""
        key = f"engine/{rank}"
        while not self._stores.watch.check([key]):
            self.watch.check()
            time.sleep(_POLL_SECONDS)
        fields = parse_json(self._stores.watch.get(key), key).fields("version", "digest")
        return self.watch.host_of(rank), fields["version"].text(), fields["digest"].sha256()

    def _learn_of_drafts(self) -> bool:
        """At rank 0, whether the engine has an MTP layer: its first rank tells."""
        source, flag = self.layout.logits_rank, np.array([has_drafts(self.worker)], np.int64)
        if self.rank == source != ROOT:
            self.communicator.send(flag, ROOT, "control")
        elif self.rank == ROOT != source:
            self.communicator.receive(flag, source, "control")
        return bool(flag[0])

    def leave(self) -> None:
        """The job is over: waits for the others, and goes."""
        self.communicator.barrier()
        self.watch.stop()
        self.communicator.close()


def lead(
    engine: Path,
    threads: int | None = None,
    verify: Verify = "auto",
    fault_timeout: float = DEFAULT_TIMEOUT,
    step_timeout: float = DEFAULT_STEP_TIMEOUT,
    kernels: KernelChoice = "auto",
) -> DistributedSession:
    """The engine's session, at rank 0. Raises as `Member` and `Member.load`."""
    ending = _Ending()
    member = Member(engine, fault_timeout, step_timeout)
    ending.watch = member.watch
    member.load(threads, verify, kernels)
    config = member.files.config
    model = Model(f"engine {engine}", config.vocab_size, config.hidden_size, member.drafts)
    return DistributedSession(member.worker, member.communicator, member.layout, model, member.leave, member.watch)


def take_part(
    engine: Path,
    threads: int | None = None,
    verify: Verify = "auto",
    fault_timeout: float = DEFAULT_TIMEOUT,
    step_timeout: float = DEFAULT_STEP_TIMEOUT,
    kernels: KernelChoice = "auto",
) -> None:
    """Does what rank 0 says, until it says that the job is over; at any other rank. Prints nothing.

    A fault, also one of its own, ends the process: rank 0 tells the user. Raises as `Member`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    member = Member(engine, fault_timeout, step_timeout)
    try:
        member.load(threads, verify, kernels)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # rank 0 gets them too, finishes what runs, and then tells the others
        follow(member.worker, member.communicator, member.files.config.hidden_size)
        member.leave()
    except JobFault:
        member.watch.end()
    except Exception as error:  # noqa: BLE001 - of whatever kind: the job cannot go on
        member.watch.tell(str(error) or type(error).__name__)
        member.watch.end()


class _Ending:
    """What SIGTERM does to rank 0 from now on.

    A launcher sends it to all ranks when one has ended, and then the user is to read which one; so this looks first.
    While the ranks are still to meet it ends the process, and the launcher says why.
    """

    def __init__(self) -> None:
        self.watch: Watch | None = None
        if threading.current_thread() is threading.main_thread():
            self._usual = signal.signal(signal.SIGTERM, self._look)

    def _look(self, _number: int, _frame: FrameType | None) -> None:
        if self.watch is None:
            os._exit(_TERMINATED)
        signal.signal(signal.SIGTERM, self._usual)
        threading.Thread(target=self._decide, args=(self.watch,), daemon=True).start()

    @staticmethod
    def _decide(watch: Watch) -> None:
        if watch.look(_LOOK_SECONDS) is None:
            os.kill(os.getpid(), signal.SIGTERM)
