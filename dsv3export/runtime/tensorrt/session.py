"""Runs an engine's programs with TensorRT or TensorRT-RTX. No torch."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any
from weakref import finalize

from dsv3export.engine.program import MTP_PROGRAM, PROGRAM, Program
from dsv3export.model_size import count_parameters
from dsv3export.runtime.device import Device
from dsv3export.runtime.drafting import no_drafts
from dsv3export.runtime.tensorrt.engines import flavour_of
from dsv3export.runtime.tensorrt.kernels import KernelCache
from dsv3export.runtime.tensorrt.memory import check_engines, check_memory
from dsv3export.runtime.tensorrt.opened import OpenedProgram, Workplace
from dsv3export.runtime.tensorrt.signature import FINAL_HIDDEN, IDS
from dsv3export.runtime.tensorrt.steps import StepProgram, Tokens
from dsv3export.runtime.tensorrt.weights import DeviceWeights
from dsv3export.runtime.tensorrt_module import load_tensorrt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.engine.reader import EngineFiles
    from dsv3export.progress import Progress
    from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
    from dsv3export.runtime.session import Hidden, IntArray, Logits
    from dsv3export.runtime.tensorrt.graphs import StepGraphs


class TensorRTSession:
    """A `DraftingSession` on an NVIDIA GPU.

    Weights lie on the device, each once. The MTP layer is loaded by the first draft, or at once.

    Args:
        files: The engine; `files` must have passed its checks.
        device: Where to compute; None takes the first GPU.
        trt: The flavour's module; None finds it.
        kernels: Where TensorRT-RTX keeps compiled kernels; None takes the user's cache folder.
        progress: Told of the bytes of weights.
        drafts: Whether it is known already that drafts will be wanted: then the MTP layer's memory is asked for before
            anything is loaded.

    Raises:
        BackendError: TensorRT, a driver or a device is missing, or does not run this engine.
        EngineError: The engine does not hold what its program says.
        RequestError: `drafts` of an engine without an MTP layer.
        ResourceError: It does not fit the device's memory; said before weights are loaded.
    """

    cache_on_host = False

    def __init__(
        self,
        files: EngineFiles,
        device: Device | None = None,
        trt: Any = None,
        kernels: KernelCache | None = None,
        progress: Progress | None = None,
        drafts: bool = False,
    ) -> None:
        self._files, self._progress = files, progress
        program = Program.from_json(files.graph(PROGRAM))
        module = trt or load_tensorrt(flavour_of(program))
        device = device or Device()
        check_engines(f"engine {files.path}", _baked_bytes(files, program), device)
        self._place = Workplace(module, device, device.stream(), kernels or KernelCache.of(files, device))
        self._opened = OpenedProgram(files, PROGRAM, self._place)
        self._opened_mtp = self._open_mtp(self._opened.scratch_bytes) if drafts else None
        wanted = [each for each in (self._opened, self._opened_mtp) if each]
        self._check_memory(wanted, self._opened_mtp)
        self._scratch = device.allocate(max(each.scratch_bytes for each in wanted))
        self._held: list[DeviceWeights] = []
        self._trunk, *others = [self._loaded(each) for each in wanted]
        self._mtp = others[0] if others else None
        finalize(self, self._place.kernels.save)

    @property
    def cache_layout(self) -> CacheLayout:
        return self._opened.signature.layout

    @property
    def vocab_size(self) -> int:
        return self._opened.signature.vocab_size

    @property
    def capacity(self) -> int:
        """The most tokens of a sequence that the engine was built for."""
        return self._opened.program.limits.capacity

    @property
    def graphs(self) -> StepGraphs:
        """The trunk's steps that were captured, or why there are none."""
        return self._trunk.graphs

    def step(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> Logits:
        """See `Session.step`. Raises BackendError when TensorRT fails or the device is lost."""
        return self._trunk.run({IDS: input_ids}, start, cache, slots, logit_rows, hidden=False)[0]

    def step_hidden(
        self, input_ids: IntArray, start: IntArray, cache: LatentCache, slots: range, logit_rows: IntArray
    ) -> tuple[Logits, Hidden]:
        """See `DraftingSession.step_hidden`. Raises as `step`."""
        return self._trunk.run({IDS: input_ids}, start, cache, slots, logit_rows, hidden=True)

    @property
    def draft_cache_layout(self) -> CacheLayout:
        """See `DraftingSession`. Raises RequestError where the engine has no MTP layer."""
        return self._drafting().signature.layout

    def draft(
        self, hidden: Hidden, next_ids: IntArray, start: IntArray, cache: LatentCache, slots: range,
        logit_rows: IntArray,
    ) -> tuple[Logits, Hidden]:  # fmt: skip
        """See `DraftingSession.draft`. Raises as `step`, and RequestError where the engine has no MTP layer."""
        tokens: Tokens = {IDS: next_ids, FINAL_HIDDEN: hidden}
        return self._drafter().run(tokens, start, cache, slots, logit_rows, hidden=True)

    def _drafter(self) -> StepProgram:
        if self._mtp is None:
            opened = self._drafting()
            self._check_memory([opened], opened)
            self._mtp = self._loaded(opened)
        return self._mtp

    def _drafting(self) -> OpenedProgram:
        if self._opened_mtp is None:
            self._opened_mtp = self._open_mtp(self._scratch.nbytes)
        return self._opened_mtp

    def _open_mtp(self, scratch: int) -> OpenedProgram:
        if MTP_PROGRAM not in self._files.manifest.graphs:
            raise no_drafts(f"engine {self._files.path}")
        held = {entry.name for entry in self._opened.entries}
        first_layer = self._files.config.num_hidden_layers
        return OpenedProgram(self._files, MTP_PROGRAM, self._place, first_layer, held, scratch)

    def _check_memory(self, wanted: Sequence[OpenedProgram], mtp: OpenedProgram | None) -> None:
        needs = reduce(add, (each.needs for each in wanted))
        count = count_parameters(self._files.config)
        parameters = sum(count.total if each is self._opened else count.mtp for each in wanted)
        check_memory(self._opened.where, needs, self._place.device, parameters, mtp.needs if mtp else None)

    def _loaded(self, opened: OpenedProgram) -> StepProgram:
        place = self._place
        self._held.append(DeviceWeights(self._files, opened.entries, place.device, place.stream, self._progress))
        weights = {name: address for each in self._held for name, address in each.addresses.items()}
        enough = self._scratch.nbytes >= opened.scratch_bytes
        scratch = self._scratch if enough else place.device.allocate(opened.scratch_bytes)
        return StepProgram(opened, weights, scratch)


def _baked_bytes(files: EngineFiles, program: Program) -> int:
    """Of the engines that hold their weights: they take none."""
    names = {engine for kind in program.kinds.values() if not kind.weights for engine in kind.engines.values()}
    return sum(files.manifest.graphs[name].size for name in names)
