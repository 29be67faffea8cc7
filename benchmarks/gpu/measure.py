"""One case from its tensors to a row of results: the check, our time, the peers', and the tuning of what it calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.limits import Limits
from benchmarks.gpu.peers import OTHER_NUMBERS, peers_of
from benchmarks.gpu.shapes import Case, Floor, Model, floor_of
from benchmarks.gpu.timing import Timer, Times, copies_for
from benchmarks.gpu.work import WORK, Choice, Source, Work
from dsv3export.plugins.kernels.calls import Run, TorchCall, tensor_type
from dsv3export.plugins.kernels.checks import TOLERANCES, distance
from dsv3export.plugins.kernels.op_kernels import OpKernels
from dsv3export.plugins.kernels.plugin import Attributes, Plugin
from dsv3export.plugins.kernels.tuning import TunedChoice, TunedTile, Tuning, shapes_of, work_of

# e4m3's and int8's own rounding is not our kernels' error; bfloat16 results are compared with float32 ones.
_TOLERANCE = TOLERANCES["BF16"]
# A peer may sum in another order, or round probabilities.
_PEERS_SLACK = 3.0


@dataclass(frozen=True)
class Bench:
    """The device that is measured.

    Attributes:
        run: Executes a launch.
        target: Its compute capability.
        cache: Bytes of its last cache.
        memory: Bytes that the copies of a case may take.
    """

    run: Run
    target: int
    device: torch.device
    processors: int
    timer: Timer
    tuning: Tuning
    model: Model
    cache: int
    memory: int

    def ops(self, tuning: Tuning | None = None, poison: bool = False) -> OpKernels:
        """Our kernels as cut by a table; by default the device's."""
        table = tuning or self.tuning
        call = TorchCall(self.run, self.target, _chooser(table, self.target), poison)
        return OpKernels(call, self.processors, table)


@dataclass(frozen=True)
class PeerResult:
    """A peer's time, or why it has none."""

    name: str
    microseconds: float | None = None
    error: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Result:
    """A case, measured.

    Attributes:
        error: ||result - reference|| / ||reference|| of the part that was checked.
        floor_microseconds: What the floor takes at the limits that were measured in the same run.
        of_bandwidth, of_matmul: Shares of those limits.
        copies: Of the inputs, that took turns; `out_of_cache` if together they exceed the last cache.
    """

    kernel: str
    shape: str
    error: float
    tolerance: float
    floor: Floor
    times: Times
    floor_microseconds: float
    of_bandwidth: float
    of_matmul: float
    copies: int
    out_of_cache: bool
    peers: tuple[PeerResult, ...] = field(default=())

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance

    @property
    def best_peer(self) -> PeerResult | None:
        """The fastest of those that compute the same numbers."""
        timed = [peer for peer in self.peers if peer.microseconds is not None and peer.name not in OTHER_NUMBERS]
        return min(timed, key=lambda peer: peer.microseconds or math.inf, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours: above 1, ours is the faster."""
        best = self.best_peer
        return None if best is None or best.microseconds is None else best.microseconds / self.times.microseconds

    def to_json(self) -> dict[str, Any]:
        best = self.best_peer
        more = {"right": self.right, "best_peer": best and best.name, "ratio": self.ratio}
        return without_nan(asdict(self) | more)


def prepared(case: Case, bench: Bench) -> Work:
    """A case's tensors, as many copies as push each other out of the cache."""
    if case.kernel == "moe_experts":
        # Its banks are shared by the copies: the tokens that take turns choose different experts.
        copies = 4
    else:
        copies = copies_for(floor_of(case, bench.model).bytes, bench.cache, bench.memory)
    return WORK[case.kernel](case, Source(bench.device, model=bench.model), copies)


def measured(case: Case, work: Work, bench: Bench, limits: Limits) -> Result:
    """Checks, then times. A wrong result has no time."""
    floor = floor_of(case, bench.model, work.experts_hit)
    error = distance(*work.check(work.run(bench.ops(poison=True), 0)))
    tolerance = work.slack * _TOLERANCE
    ops, copies = bench.ops(), len(work.sets)
    times = Times(math.nan, math.nan, math.nan, captured=False)
    if error <= tolerance:
        times = bench.timer(lambda copy: work.run(ops, copy), copies)
    seconds, rate = times.microseconds * 1e-6, limits.rates.get(floor.matrix, math.nan)
    return Result(
        case.kernel,
        case.shape,
        error,
        tolerance,
        floor,
        times,
        1e6 * floor.seconds(limits.bandwidth, limits.rates),
        floor.bytes / seconds / limits.bandwidth,
        floor.flops / seconds / rate,
        copies,
        copies * floor.bytes > bench.cache,
        tuple(_peer_results(case, work, bench, tolerance)),
    )


def _peer_results(case: Case, work: Work, bench: Bench, tolerance: float) -> Iterator[PeerResult]:
    for name, make in peers_of(case, work):
        try:
            run = make()
            result = run(0)
            error = None if name in OTHER_NUMBERS else _peer_error(work, result)
            if error is not None and error > _PEERS_SLACK * tolerance:
                yield PeerResult(name, error=error, refused="other numbers than the reference's")
                continue
            yield PeerResult(name, bench.timer(run, len(work.sets)).microseconds, error)
        except Exception as problem:  # noqa: BLE001 - the line below says why
            # Whatever a library of another version says: the peer is reported as refused, the run goes on.
            yield PeerResult(name, refused=f"{type(problem).__name__}: {problem}".splitlines()[0][:200])


def _peer_error(work: Work, result: Tensor) -> float:
    part, reference = work.check(result)
    return distance(part.reshape(reference.shape), reference)


def tuned(case: Case, work: Work, bench: Bench) -> Tuning:
    """The fastest of each plugin's tiles at the types that the case gives it, then of the numbers it is cut by."""
    tiles = tuple(_tuned_tiles(work, bench))
    table = bench.tuning.merged(Tuning(bench.tuning.device, bench.tuning.made, tiles))
    choices = tuple(_tuned_choice(work, bench, table, choice) for choice in work.choices)
    return Tuning(bench.tuning.device, bench.tuning.made, tiles, choices)


def _tuned_tiles(work: Work, bench: Bench) -> Iterator[TunedTile]:
    for plugin, inputs, attributes in _calls(work, bench):
        types = [tensor_type(tensor) for tensor in inputs]
        default = plugin.prefer(types, attributes, bench.target)
        runs = {place: _with_tile(bench, place, plugin, inputs, attributes) for place in range(len(plugin.tiles))}
        timed = {place: _time_or_none(bench, run) for place, run in runs.items()}
        times = {place: microseconds for place, microseconds in timed.items() if microseconds is not None}
        if len(times) > 1 and default in times:
            best = min(times, key=lambda place: times[place])
            yield TunedTile(
                plugin.name, shapes_of(types), work_of(attributes), plugin.tiles[best], times[best], times[default]
            )


def _with_tile(
    bench: Bench, place: int, plugin: Plugin, inputs: Sequence[Tensor], attributes: dict[str, Any]
) -> Callable[[int], object]:
    call = TorchCall(bench.run, bench.target, place, poison=False)
    return lambda _: call(plugin, inputs, **attributes)


def _calls(work: Work, bench: Bench) -> list[tuple[Plugin, Sequence[Tensor], dict[str, Any]]]:
    """What a run calls: each plugin once for the types that it is given."""
    seen: dict[Any, tuple[Plugin, Sequence[Tensor], dict[str, Any]]] = {}

    class Recorded(TorchCall):
        def __call__(self, plugin: Plugin, inputs: Sequence[Tensor], **attributes: Any) -> tuple[Tensor, ...]:
            key = plugin.name, shapes_of([tensor_type(tensor) for tensor in inputs]), tuple(attributes.items())
            seen.setdefault(key, (plugin, [tensor.contiguous() for tensor in inputs], attributes))
            return super().__call__(plugin, inputs, **attributes)

    call = Recorded(bench.run, bench.target, _chooser(bench.tuning, bench.target), poison=False)
    work.run(OpKernels(call, bench.processors, bench.tuning), 0)
    return [entry for entry in seen.values() if len(entry[0].tiles) > 1]


def _tuned_choice(work: Work, bench: Bench, table: Tuning, choice: Choice) -> TunedChoice:
    sizes = tuple(sorted(choice.sizes.items()))

    def seconds(extra: tuple[TunedChoice, ...]) -> float | None:
        ops = bench.ops(table.merged(replace(table, tiles=(), choices=extra)))
        return _time_or_none(bench, lambda copy: work.run(ops, copy), len(work.sets))

    default = seconds(()) or math.inf
    times = {value: seconds((TunedChoice(choice.op, sizes, value, 0.0, 0.0),)) for value in choice.candidates}
    found = {value: time for value, time in times.items() if time is not None}
    best = min(found, key=lambda value: found[value], default=choice.candidates[0])
    return TunedChoice(choice.op, sizes, best, found.get(best, math.inf), default)


def _time_or_none(bench: Bench, run: Callable[[int], object], copies: int = 1) -> float | None:
    """Microseconds; None for what the device cannot launch, e.g. for want of shared memory."""
    try:
        return bench.timer(run, copies).microseconds
    except Exception as problem:
        if type(problem).__name__ not in ("OutOfResources", "RuntimeError", "AcceleratorError"):
            raise
        return None


def _chooser(tuning: Tuning, target: int) -> Any:
    def chosen(plugin: Plugin, types: Any, attributes: Attributes) -> int:
        return tuning.tile_index(plugin, types, attributes, target)

    return chosen


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value
