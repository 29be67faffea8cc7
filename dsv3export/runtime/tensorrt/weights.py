"""Weights from their files to the device, each byte once and straight: file -> page-locked memory -> device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from dsv3export.engine.manifest import WeightEntry
from dsv3export.engine.pieces import joined, read_into
from dsv3export.engine.program import Port, Program
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import EngineError
from dsv3export.progress import NoProgress, Progress
from dsv3export.runtime.device import Device, DeviceBuffer, Event, Stream, aligned

# Two of these are page-locked while weights are read.
CHUNK = 16 << 20


@dataclass(frozen=True)
class _Run:
    """Bytes of a file that go to an offset on the device."""

    path: Path
    begin: int
    nbytes: int
    target: int


def wanted_weights(files: EngineFiles, program: Program) -> list[WeightEntry]:
    """The rows of the weight table that a program's calls name, each once.

    Raises EngineError unless each has the type and shape that the engines were built for: they trust what they get.
    """
    wanted: dict[str, WeightEntry] = {}
    for call in program.calls:
        for port in program.kinds[call.kind].weights:
            name = call.weights[port.name]
            entry = files.entries.get(name)
            if entry is None or not _fits(entry, port):
                raise EngineError(
                    f"engine {files.path}: weight {name!r}",
                    expected=f"{port.dtype} {list(port.shape)}, as in the program",
                    got=f"{entry.dtype} {list(entry.shape)}" if entry else "none in engine.json", fix=REBUILD,
                )  # fmt: skip
            wanted[name] = entry
    return list(wanted.values())


def _fits(entry: WeightEntry, port: Port) -> bool:
    """Equal, but that the table has 4-bit numbers by their bytes, and an engine may take numbers by their bits."""
    if port.dtype == "I4":
        return entry.dtype == "U8" and (*entry.shape[:-1], 2 * entry.shape[-1]) == port.shape
    bits = port.dtype == "I8" and entry.dtype in ("F8_E4M3", "U8")
    return (entry.dtype == port.dtype or bits) and entry.shape == port.shape


def weight_bytes(entries: Iterable[WeightEntry]) -> int:
    """What they take on the device, each aligned."""
    return sum(aligned(entry.nbytes) for entry in entries)


class DeviceWeights:
    """Weights in one piece of device memory, `addresses` by name.

    They are read in the order of the table, chunk by chunk: while one is copied to the device, the next is read.

    Raises:
        EngineError: A file was cut or cannot be read, although it has passed its checks.
        ResourceError: The memory cannot be had.
    """

    def __init__(
        self,
        files: EngineFiles,
        entries: Iterable[WeightEntry],
        device: Device,
        stream: Stream,
        progress: Progress | None = None,
    ) -> None:
        listed = list(entries)
        self.nbytes = weight_bytes(listed)
        self._memory: DeviceBuffer = device.allocate(self.nbytes)
        offsets: dict[str, int] = {}
        end = 0
        for entry in listed:
            offsets[entry.name] = end
            end += aligned(entry.nbytes)
        self.addresses: Mapping[str, int] = {name: self._memory.address + offset for name, offset in offsets.items()}
        progress = progress or NoProgress()
        progress.start("weights to the GPU", sum(entry.nbytes for entry in listed), "bytes")
        _upload(_chunks(_runs(files, listed, offsets)), self._memory, device, stream, progress)
        progress.finish()


def _runs(files: EngineFiles, entries: Iterable[WeightEntry], offsets: Mapping[str, int]) -> Iterator[_Run]:
    roots = {"engine": files.path, "checkpoint": Path(files.manifest.checkpoint.path)}
    for entry in entries:
        target = offsets[entry.name]
        for piece in joined(entry.pieces):
            yield _Run(roots[entry.location] / piece.file, piece.offset, piece.nbytes, target)
            target += piece.nbytes


def _chunks(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Runs, cut where they are too long, in groups that go to neighbouring places and fill at most a chunk."""
    group: list[_Run] = []
    for run in runs:
        done = 0
        while done < run.nbytes:
            start = group[0].target if group else run.target + done
            room = start + CHUNK - (run.target + done)
            if room <= 0:
                yield group
                group = []
                continue
            count = min(room, run.nbytes - done)
            group.append(_Run(run.path, run.begin + done, count, run.target + done))
            done += count
    if group:
        yield group


def _upload(
    chunks: Iterable[list[_Run]], memory: DeviceBuffer, device: Device, stream: Stream, progress: Progress
) -> None:
    """Through two buffers in turn; one is filled again when its copy is done."""
    size = min(CHUNK, memory.nbytes)
    buffers = [device.pinned(size) for _ in range(2)]
    copied: list[Event | None] = [None, None]
    try:
        with ExitStack() as stack:
            opened: dict[Path, FileIO] = {}
            for number, chunk in enumerate(chunks):
                turn = number % 2
                waiting = copied[turn]
                if waiting is not None:
                    waiting.synchronise()
                start = chunk[0].target
                for run in chunk:
                    _read(run, opened, stack, buffers[turn].bytes[run.target - start :][: run.nbytes].data)
                    progress.advance(run.nbytes)
                nbytes = chunk[-1].target + chunk[-1].nbytes - start
                stream.copy_in(memory.address + start, buffers[turn], nbytes)
                copied[turn] = stream.event()
        stream.synchronise()
    except BaseException:
        stream.drain()
        raise


def _read(run: _Run, opened: dict[Path, FileIO], stack: ExitStack, target: memoryview) -> None:
    try:
        if run.path not in opened:
            opened[run.path] = stack.enter_context(FileIO(run.path))
        read_into(opened[run.path], run.begin, target)
    except OSError as error:
        raise EngineError(str(run.path), expected="a readable file", got=error.strerror or str(error)) from error
