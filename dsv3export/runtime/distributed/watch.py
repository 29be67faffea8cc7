"""Notices that a rank is gone, and sees to it that all end, with one message.

Each rank writes a number that grows into the store that all met at, and looks at the others' numbers. A rank whose
number stands still for as long as the bound is gone, however that came about: it was stopped, its machine or the way
to it is down. One that computes without end goes on counting: its own watch reports it. On its own machine a rank also
sees at once whether another's process has ended. Whoever notices first writes down what happened, and the others follow
it.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, Protocol

from dsv3export.engine.typed_json import parse_json
from dsv3export.runtime.distributed.faults import JobFault
from dsv3export.runtime.distributed.processes import Process

DEFAULT_TIMEOUT, DEFAULT_STEP_TIMEOUT = 30.0, 600.0
EXIT_CODE = 2
_FAULT = "fault"
SAID = "said"
# Shares of the bound: from beat to beat, until a rank that is silent counts as gone, and what the main thread of a
# process gets to say by itself what happened and to end. The rest is for the launcher.
_TICK, _SILENCE, _GRACE = 1 / 30, 0.65, 1 / 15
# After another sign of a fault (a connection that broke) this many beats missed are enough.
_SUSPICIOUS_BEATS = 6
# A process that has ended may have written down why; the store needs a moment.
_LAST_WORDS_SECONDS = 0.3


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class Watch:
    """One rank's watch over the others.

    Args:
        store: All ranks use the same one.
        rank, world_size: This one, and how many.
        where: The store's address, for messages.
        timeout: Seconds within which a fault ends the job.
        step_timeout: Seconds that this rank may be `computing` at a stretch.
        leave: What ends this process; other than in tests, at once.

    Attributes:
        fault: What happened; None while all is well.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, where: str, timeout: float = DEFAULT_TIMEOUT,
        step_timeout: float = DEFAULT_STEP_TIMEOUT, leave: Callable[[int], object] = os._exit,
    ) -> None:  # fmt: skip
        self.fault: JobFault | None = None
        self._store, self._rank, self._world_size, self._where = store, rank, world_size, where
        self._timeout, self._step_timeout, self._leave = timeout, step_timeout, leave
        self._computing_since: float | None = None
        self._tick, self._grace = timeout * _TICK, timeout * _GRACE
        self._processes: dict[int, Process] = {rank: Process.own()}
        self._last: dict[int, bytes] = {}
        self._silent: dict[int, float] = {}  # seconds without a beat
        self._unheard = 0.0  # seconds since the store answered
        self._suspicious = threading.Event()
        self._stopped = threading.Event()
        self._found = threading.Event()
        self._said = self._cut_off = False
        self._listeners: list[Callable[[JobFault], None]] = []
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """This rank's machine."""
        return self._processes[self._rank].host

    def host_of(self, rank: int) -> str:
        """The machine of a rank that was met."""
        return self._processes[rank].host

    def start(self) -> None:
        """Begins to beat. The others are watched once they have `met`."""
        atexit.register(self._leave_after_fault)
        process = self._processes[self._rank]
        self._store.set(f"process/{self._rank}", json.dumps(vars(process)))
        for target in (self._beat, self._guard):
            threading.Thread(target=target, name=f"dsv3export-{target.__name__[1:]}", daemon=True).start()

    def meet(self, seconds: float) -> None:
        """Waits for all ranks. Raises JobFault for one that does not come within that time."""
        deadline = time.monotonic() + seconds
        for rank in range(self._world_size):
            while not self._store.check([f"process/{rank}"]):
                if time.monotonic() > deadline:
                    self.report(JobFault(rank, "", f"did not start within {seconds:g} s"))
                self.check()
                time.sleep(0.02)
            fields = parse_json(self._store.get(f"process/{rank}"), f"process/{rank}").fields(
                "host", "machine", "pid", "started"
            )
            process = Process(
                fields["host"].text(), fields["machine"].text(), fields["pid"].integer(), fields["started"].integer()
            )
            with self._lock:
                self._processes[rank] = process

    def check(self) -> None:
        """Raises JobFault if something has happened."""
        if self.fault:
            self._say()
            raise self.fault

    def report(self, fault: JobFault, said: bool = False) -> None:
        """Writes down what happened, unless another rank was first, and raises what is written there.

        Args:
            said: This rank tells the user by itself.
        """
        self._write_down(fault, said)
        self.check()

    def tell(self, cause: str) -> None:
        """This rank cannot go on; of rank 0 the user hears by itself."""
        self._write_down(JobFault(self._rank, self.host, cause), said=self._rank == 0)

    def explain(self, error: str) -> JobFault:
        """What lies behind a connection that broke: waits for the other ranks' silence, or for one that knows."""
        self._suspicious.set()
        self._found.wait(self._timeout)
        if not self.fault:
            self._write_down(JobFault(self._rank, self.host, f"lost its connection: {error}"), said=False)
        assert self.fault is not None
        self._say()
        return self.fault

    def look(self, seconds: float) -> JobFault | None:
        """Whether a rank is gone, after looking closely for that time."""
        self._suspicious.set()
        self._found.wait(seconds)
        if not self.fault:
            self._suspicious.clear()
        return self.fault

    def listen(self, listener: Callable[[JobFault], None]) -> None:
        """Calls `listener`, in another thread, when there is a fault; it tells the user."""
        self._listeners.append(listener)

    def end(self) -> NoReturn:
        """Waits until the watch ends this process, after a fault."""
        while True:
            time.sleep(self._timeout)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, this rank computes and waits for nobody."""
        self._computing_since = time.monotonic()
        try:
            yield
        finally:
            self._computing_since = None

    def stop(self) -> None:
        """The job is over: from now on a rank may go."""
        self._stopped.set()

    def _beat(self) -> None:
        for beats, seconds in enumerate(self._ticks()):
            try:
                self._store.set(f"beat/{self._rank}", str(beats))
                self._read_fault()
                self._look_at_others(seconds)
                self._look_at_itself()
            except Exception as error:  # noqa: BLE001 - whatever the store raises: it is gone
                if not self._stopped.is_set():
                    self._found_out(self._lost(" ".join(str(error).split())[:120]))
                return
            self._unheard = 0.0

    def _ticks(self) -> Iterator[float]:
        """Seconds since the tick before, until the end.

        No more than two ticks are counted: a machine that was asleep has not heard of anybody, which means nothing.
        """
        before = time.monotonic()
        while not self._stopped.wait(min(self._tick, _LAST_WORDS_SECONDS) if self._suspicious.is_set() else self._tick):
            now = time.monotonic()
            yield min(now - before, 2 * self._tick)
            before = now

    def _guard(self) -> None:
        """Counts how long the store has not answered: the other thread may hang in a call to it."""
        for seconds in self._ticks():
            self._unheard += seconds
            if self._unheard > self._timeout * _SILENCE:
                self._found_out(self._lost(f"no answer for {self._unheard:.1f} s"))
            if self.fault:
                self._go()
                return

    def _look_at_others(self, seconds: float) -> None:
        with self._lock:
            others = [(rank, process) for rank, process in self._processes.items() if rank != self._rank]
        limit = self._tick * _SUSPICIOUS_BEATS if self._suspicious.is_set() else self._timeout * _SILENCE
        for rank, process in others:
            if process.is_gone and not self._stopped.wait(_LAST_WORDS_SECONDS):
                self._read_fault()
                cause = f"its process {process.pid} has ended (killed, or out of memory?)"
                self._write_down(JobFault(rank, process.host, cause), said=False)
            beat = self._store.get(f"beat/{rank}") if self._store.check([f"beat/{rank}"]) else b""
            self._silent[rank] = 0 if beat != self._last.get(rank) else self._silent.get(rank, 0) + seconds
            self._last[rank] = beat
            if self._silent[rank] > limit:
                cause = f"not heard of for {self._silent[rank]:.1f} s (stopped, or its machine or the network is down?)"
                self._write_down(JobFault(rank, process.host, cause), said=False)

    def _look_at_itself(self) -> None:
        since = self._computing_since
        if since is not None and time.monotonic() - since > self._step_timeout:
            cause = f"it has computed for more than {self._step_timeout:g} s at a stretch (--step-timeout)"
            self._write_down(JobFault(self._rank, self.host, cause), said=False)

    def _read_fault(self) -> None:
        if not self.fault and self._store.check([_FAULT]):
            self._accept(self._store.get(_FAULT))

    def _write_down(self, fault: JobFault, said: bool) -> None:
        text = json.dumps({"rank": fault.rank, "host": fault.host, "cause": fault.cause, "said": said})
        try:
            self._accept(self._store.compare_set(_FAULT, "", text))
        except Exception:  # noqa: BLE001 - without a store the others find out by themselves
            self._found_out(fault)

    def _accept(self, written: bytes) -> None:
        fields = parse_json(written, _FAULT).fields("rank", "host", "cause", "said")
        if fields["said"].value is True:
            self._said = True
        self._found_out(JobFault(fields["rank"].integer(), fields["host"].text(), fields["cause"].text()))

    def _found_out(self, fault: JobFault) -> None:
        with self._lock:
            if self.fault:
                return
            self.fault = fault
        self._found.set()

    def _lost(self, why: str) -> JobFault:
        self._cut_off = True
        host = self._processes[0].host if 0 in self._processes else ""
        return JobFault(0, host, f"its store at {self._where} is lost to rank {self._rank} on {self.host}: {why}")

    def _go(self) -> None:
        """Ends what hangs on this machine, and this process if it does not end by itself."""
        assert self.fault is not None
        for listener in self._listeners:
            listener(self.fault)
            self._said = True
            self._note()
        culprit = self._processes.get(self.fault.rank)
        # Whoever is cut off from the store cannot say that rank 0 hangs.
        if culprit and self.fault.rank != self._rank and not self._cut_off:
            culprit.kill()
        # Those who are silent end last: a launcher ends the others as soon as one has.
        time.sleep(self._grace if self._speaks() else 2 * (self._grace + self._tick))
        if not self._said and self._speaks():
            self._note()
            with suppress(OSError):
                sys.stderr.write(f"dsv3export: error: {self.fault}\n")
                sys.stderr.flush()
        self._leave(EXIT_CODE)

    def _leave_after_fault(self) -> None:
        """At the interpreter's end: gloo's threads, which wait for ranks that are gone, would abort the process."""
        if self.fault:
            sys.stdout.flush()
            sys.stderr.flush()
            self._leave(EXIT_CODE)

    def _say(self) -> None:
        """Rank 0 tells the user by the error that is raised there; notes it for the launcher."""
        if self._rank == 0:
            self._said = True
            self._note()

    def _note(self) -> None:
        def note() -> None:
            with suppress(Exception):  # the store may be what is gone
                self._store.set(SAID, "1")

        noting = threading.Thread(target=note, daemon=True)  # a store that is cut off answers never
        noting.start()
        noting.join(self._grace)

    def _speaks(self) -> bool:
        """One rank tells the user: rank 0, unless it is the one that is gone."""
        return self._rank == (0 if self.fault is None or self.fault.rank != 0 else 1)
