"""Tries every row of the table on a backend and says what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from dsv3export.errors import BackendError
from dsv3export.graphs.conformance.calls import Array, OpCall, call_count, calls
from dsv3export.graphs.conformance.one_op import one_op_graph
from dsv3export.graphs.conformance.reference import TOLERANCES, error, expected
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.progress import NoProgress, Progress

Result = Literal["pass", "fail", "built", "refused"]


class BuiltOp(Protocol):
    """A tiny engine of one op."""

    def run(self) -> Mapping[str, Array]:
        """The op's outputs by name. Raises BackendError."""
        ...


class OpBackend(Protocol):
    """What can build, and maybe run, one op.

    Attributes:
        name, version: Of the backend.
        int_activations: How it multiplies with integer weights.
        typed_caches: Whether its LatentAppend takes 16-bit caches by itself.
        with_step: Whether its kinds take the argument that tells the step's shape.
        why_not_run: Why nothing can be run on this machine; empty where it can.
    """

    name: str
    version: str
    int_activations: Literal["none", "int8"]
    typed_caches: bool
    with_step: bool
    why_not_run: str

    def refusal(self, call: OpCall) -> str:
        """Why this backend does not do the op at this precision at all; empty where it does."""
        ...

    def build(self, call: OpCall, graph: GraphWithWeights) -> BuiltOp:
        """Builds a tiny engine of the call. Raises BackendError."""
        ...

    def computes_in(self, call: OpCall) -> str:
        """What it computes the call in: a key of `TOLERANCES`."""
        ...


@dataclass(frozen=True)
class Verdict:
    """One row.

    Attributes:
        result: "pass" or "fail" of what was run, or could not be built though it should; "built" of what could not be
            run here; "refused" of what the backend does not do.
        error: The largest relative error of a token's row; None where nothing was run.
        tolerance: How large it may be.
        build_ms, run_ms: Milliseconds; the run is the second one.
        why: In one line, of every result but "pass".
    """

    op: str
    precision: str
    phase: str
    result: Result
    error: float | None = None
    tolerance: float | None = None
    build_ms: float | None = None
    run_ms: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Report:
    """What was found out about a backend."""

    backend: str
    version: str
    why_not_run: str
    rows: tuple[Verdict, ...]

    def count(self, result: Result) -> int:
        return sum(row.result == result for row in self.rows)


def check_backend(backend: OpBackend, progress: Progress | None = None) -> Report:
    """Tries every op at every precision and phase."""
    progress = progress or NoProgress()
    progress.start(f"conformance of {backend.name}", call_count(), "ops")
    rows = []
    for call in calls(backend.int_activations, backend.typed_caches):
        rows.append(_verdict(backend, call))
        progress.advance(1)
    progress.finish()
    return Report(backend.name, backend.version, backend.why_not_run, tuple(rows))


def _verdict(backend: OpBackend, call: OpCall) -> Verdict:
    names = call.op.name, call.precision, call.phase
    if refusal := backend.refusal(call):
        return Verdict(*names, "refused", why=refusal)
    graph = one_op_graph(call, backend.with_step)
    want = expected(call, graph)
    tolerance = TOLERANCES[backend.computes_in(call)]
    try:
        with _milliseconds() as building:
            built = backend.build(call, graph)
        if backend.why_not_run:
            return Verdict(*names, "built", tolerance=tolerance, build_ms=building[0], why=backend.why_not_run)
        built.run()
        with _milliseconds() as running:
            got = built.run()
    except BackendError as refused:
        return Verdict(*names, "fail", tolerance=tolerance, why=str(refused))
    found = error(call, want, got)
    verdict: Result = "pass" if found <= tolerance else "fail"
    why = "" if verdict == "pass" else f"off by {found:.2g}, allowed is {tolerance:.2g}"
    return Verdict(*names, verdict, found, tolerance, building[0], running[0], why)


@contextmanager
def _milliseconds() -> Iterator[list[float]]:
    """A list that gets the block's time."""
    taken: list[float] = []
    start = time.perf_counter()
    yield taken
    taken.append((time.perf_counter() - start) * 1e3)
