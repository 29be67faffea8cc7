"""What each weight is multiplied with while the float32 model reads the calibration text, one layer at a time.

All sequences go through a layer before any goes through the next: in memory are one layer's weights, of its routed
experts one at a time, the sums over its inputs, and the hidden states of all sequences between two layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import checkpoint_tensors, is_bank, load_float32
from dsv3export.errors import CheckpointError, RequestError
from dsv3export.graphs.calibration_memory import CallMemory, call_memory
from dsv3export.graphs.interpreter import run_call, sequence_inputs
from dsv3export.graphs.opset import KIND_DOMAIN
from dsv3export.graphs.passes.quantise import component_of
from dsv3export.graphs.quantise import ExpertInputs, MomentSum
from dsv3export.graphs.quantise_weight import HessianOf
from dsv3export.graphs.streamed_bank import Argument, StreamedBank, held
from dsv3export.graphs.trace import graph_for
from dsv3export.graphs.values import is_weight

Float32 = NDArray[np.float32]
_CACHE = "latent_cache."


class Calibration:
    """Runs along while weights are quantised in the order of the graph; asked for an earlier layer, it starts again.

    Args:
        checkpoint: The weights.
        sequences: Token ids; each sequence is run whole, so that it should begin with a BOS.
    """

    def __init__(self, checkpoint: Checkpoint, sequences: Sequence[Sequence[int]]) -> None:
        self._checkpoint = checkpoint
        self._sequences = sequences
        self._model = graph_for(checkpoint.config)
        self._calls = list(self._model.graph)
        self._last_use = {value: i for i, call in enumerate(self._calls) for value in call.inputs if value is not None}
        self._call_of = {str(value.name): i for value, i in self._last_use.items() if is_weight(value)}
        self._rewind()

    @property
    def held_bytes(self) -> int:
        """Memory that lasts while a layer's weights are quantised: sums, and hidden states."""
        return max(need.held for need in self._needs)

    @property
    def passing_bytes(self) -> int:
        """Memory that running a layer takes at most, sums and hidden states included."""
        return max(need.passing for need in self._needs)

    @property
    def bytes_per_matrix(self) -> int:
        """Memory that a Hessian is made in, besides its own: an expert's share of the tokens and what comes of them."""
        return 8 * sum(map(len, self._sequences)) * self._checkpoint.config.hidden_size

    @cached_property
    def _needs(self) -> list[CallMemory]:
        return call_memory(self._model, self._checkpoint, [len(ids) for ids in self._sequences])

    def hessian_of(self, weight: str) -> HessianOf:
        """The mean of x x^T for each matrix of a weight of the traced graph.

        Raises:
            RequestError: The weight is the MTP layer's.
            CheckpointError: What it is multiplied with is no number; also from the function that is returned.
        """
        index = self.call_of(weight)
        if weight not in self._found:
            self.observe(index)
        return partial(_finite, self._found[weight], weight)

    def call_of(self, weight: str) -> int:
        """The call of the main graph that uses a weight. Raises RequestError for a weight of the MTP layer."""
        if weight not in self._call_of:
            raise RequestError(weight, expected="a weight of the trunk: the MTP layer is not calibrated")
        return self._call_of[weight]

    def observe(self, call: int) -> None:
        """Run as far as a call of the main graph, and learn what its weights are multiplied with."""
        if call < self._next:
            self._rewind()
        while self._next <= call:
            self._advance(observed=self._next == call)

    def _rewind(self) -> None:
        self._next = 0
        self._found: dict[str, HessianOf] = {}
        inputs = {str(value.name): value for value in self._model.graph.inputs}
        self._values: list[dict[ir.Value, Tensor]] = [
            {inputs[name]: tensor for name, tensor in sequence_inputs(ids).items()} for ids in self._sequences
        ]

    def _advance(self, observed: bool) -> None:
        """Run all sequences through the next call, and let go of what no later one needs."""
        call, self._found = self._calls[self._next], {}
        inputs = [value for value in call.inputs if value is not None]
        names = [str(value.name) for value in inputs if is_weight(value)]
        weights = {name: self._weight(name) for name in names}
        caches = [value for value in inputs if str(value.name).startswith(_CACHE)]
        record = _Record(self._model.functions[(KIND_DOMAIN, call.op_type, "")], call)
        with torch.inference_mode():
            for ids, values in zip(self._sequences, self._values, strict=True):
                shape = (1, len(ids), self._checkpoint.config.latent_width)
                values.update((cache, torch.zeros(shape)) for cache in caches)
                run_call(self._model, call, values, weights, watch=record.watch if observed else None)
                for done in [value for value in values if self._last_use.get(value, -1) <= self._next]:
                    del values[done]
        self._found = record.hessians(self._checkpoint)
        for source in (source for name in names for source in checkpoint_tensors(name, self._checkpoint.config)):
            self._checkpoint.forget(source)
        self._next += 1

    def _weight(self, name: str) -> Argument:
        """As float32; of a bank, which may be larger than memory, each expert when its turn comes."""
        if not is_bank(name):
            return _tensor(load_float32(name, self._checkpoint))
        return StreamedBank(lambda expert: _tensor(load_float32(name, self._checkpoint, slice(expert, expert + 1))))


class _Record:
    """The inputs of one call's linears and experts, over all sequences."""

    def __init__(self, function: ir.Function, call: ir.Node) -> None:
        pairs = zip(function.inputs, call.inputs, strict=True)
        self._names = {formal: str(actual.name) for formal, actual in pairs if actual is not None}
        # By the value that comes in: several linears share one, and the first of them adds it.
        self._moments: dict[ir.Value, MomentSum] = {}
        self._first: dict[ir.Value, ir.Node] = {}
        self._linears: dict[str, ir.Value] = {}
        self._routed: list[Sequence[Tensor]] = []
        self._banks: list[str] = []

    def watch(self, node: ir.Node, inputs: Sequence[Argument]) -> None:
        """A `Watcher` of the interpreter."""
        if component_of(node) is None:
            return
        given = [value for value in node.inputs if value is not None]
        if node.op_type == "Linear":
            x, weight = given
            self._linears[self._names[weight]] = x
            if self._first.setdefault(x, node) is node:
                rows = held(inputs[0]).numpy()
                self._moments.setdefault(x, MomentSum(rows.shape[-1])).add(rows)
        elif node.op_type == "MoEExperts":
            self._banks = [self._names[bank] for bank in given[3:]]
            self._routed.append([held(value) for value in inputs[:3]])

    def hessians(self, checkpoint: Checkpoint) -> dict[str, HessianOf]:
        """By weight; banks of experts have one for each expert."""
        means = {x: moments.hessian() for x, moments in self._moments.items()}
        found: dict[str, HessianOf] = {name: partial(_same_for_all, means[x]) for name, x in self._linears.items()}
        if self._routed:
            x, ids, weights = (torch.cat(list(parts)).numpy() for parts in zip(*self._routed, strict=True))
            experts = ExpertInputs(x, ids, weights)
            gate, up, down = self._banks
            found |= {gate: experts.hessian, up: experts.hessian}
            found[down] = partial(_inner_hessian, experts, checkpoint, gate, up)
        return found


def _same_for_all(hessian: Float32, _: int) -> Float32:
    return hessian


def _inner_hessian(experts: ExpertInputs, checkpoint: Checkpoint, gate: str, up: str, expert: int) -> Float32:
    """For `down` of an expert; its gate and up are read from the checkpoint, not kept."""
    matrices = [checkpoint.float32(checkpoint_tensors(bank, checkpoint.config)[expert]) for bank in (gate, up)]
    return experts.inner_hessian(expert, *(_writeable(matrix) for matrix in matrices))


def _finite(hessian_of: HessianOf, weight: str, matrix: int) -> Float32:
    hessian = hessian_of(matrix)
    if not np.isfinite(hessian).all():
        raise CheckpointError(
            f"inputs of {weight} on the calibration text", expected="finite numbers", got="inf or NaN"
        )
    return hessian


def _tensor(array: Float32) -> Tensor:
    return torch.from_numpy(_writeable(array))


def _writeable(array: Float32) -> Float32:
    """torch warns of arrays that it could write to but must not."""
    return array if array.flags.writeable else array.copy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: sums then come out the same whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
