"""A program of an engine, opened: its engines are loaded, its weights are not, and what it will need is known."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsv3export.engine.program import Program
from dsv3export.runtime.device import Device, Stream
from dsv3export.runtime.tensorrt.engines import ProgramEngines
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.memory import MemoryNeeds
from dsv3export.runtime.tensorrt.signature import read_signature
from dsv3export.runtime.tensorrt.values import plan_values
from dsv3export.runtime.tensorrt.weights import wanted_weights, weight_bytes

if TYPE_CHECKING:
    from dsv3export.engine.reader import EngineFiles

# Logits of more tokens are computed in portions: of DeepSeek-V3's vocabulary, 64 rows take 33 MB.
_LEAST_ROWS = 64


@dataclass(frozen=True)
class Workplace:
    """Where the programs of an engine run.

    Attributes:
        trt: The flavour's module.
        stream: Of all their work.
        kernels: Where TensorRT-RTX keeps compiled kernels.
    """

    trt: Any
    device: Device
    stream: Stream
    kernels: KernelCache


class OpenedProgram:
    """A program that passed its checks.

    Args:
        name: Its name among the engine's graphs.
        first_layer: The number of the first layer that has a cache.
        held: Weights that another program of the engine has on the device.
        scratch: TensorRT's memory that another program has, which this one may use when that does not run.

    Attributes:
        where: It, for messages.
        entries: The weights that it brings to the device.
        values: Where the values between its calls lie.
        largest: The most that each size of a step may be.
        scratch_bytes: Memory that TensorRT needs for one call at most.
        needs: What it takes on the device beside what the other program has.

    Raises:
        BackendError: This TensorRT or this device does not run it.
        EngineError: The engine does not hold what the program says.
    """

    def __init__(
        self,
        files: EngineFiles,
        name: str,
        place: Workplace,
        first_layer: int = 0,
        held: Collection[str] = (),
        scratch: int = 0,
    ) -> None:
        self.files, self.where, self.place = files, f"engine {files.path}", place
        self.program = program = Program.from_json(files.graph(name))
        self.signature = read_signature(program, f"{self.where}: {name}", first_layer)
        self.entries = [entry for entry in wanted_weights(files, program) if entry.name not in held]
        self.engines = ProgramEngines(files, program, place.trt, place.device, place.kernels)
        limits = program.limits
        rows = max(limits.slots * (1 + limits.draft), min(_LEAST_ROWS, limits.slots * limits.chunk))
        self.largest = {"B": limits.slots, "S": limits.chunk, "R": rows}
        self.values = plan_values(program, self.largest)
        self.scratch_bytes = self.engines.scratch_bytes
        further = self.scratch_bytes if self.scratch_bytes > scratch else 0
        slot = len(self.signature.caches) * self.signature.slot_bytes
        self.needs = MemoryNeeds(weight_bytes(self.entries), further + self.values.nbytes, slot, limits.capacity)
