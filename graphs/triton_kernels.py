"""The executor's other arithmetic: dsv3 ops by their Triton kernels, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from dsv3export.errors import BackendError
from dsv3export.graphs.interpreter import by_definition
from dsv3export.graphs.streamed_bank import Argument, StreamedBank, held, through_streamed_experts
from dsv3export.plugins import DOMAIN
from dsv3export.plugins.kernels.calls import DTYPES, Run, TorchCall
from dsv3export.plugins.kernels.compiler import load_triton
from dsv3export.plugins.kernels.native import capability, run_native
from dsv3export.plugins.kernels.op_kernels import OpKernels
from dsv3export.plugins.kernels.tuning import Tuning, tuning_for

Activations = Literal["F32", "F16", "BF16"]
# Their first input is data, the others are shapes, which stay on the host.
_SHAPED = frozenset({"Reshape", "Split", "Squeeze", "Unsqueeze", "Range", "ConstantOfShape"})
# The interpreter takes what this target's kernels are; few programs, since each takes milliseconds.
_INTERPRETED, _INTERPRETED_PROGRAMS = 90, 4
_CACHE = "latent_cache."
# Elements up to which a value on the host counts as a constant of the graph.
_SMALL = 4096


class TritonKernels:
    """Computes a graph's nodes by Triton kernels; implements `Kernels`.

    Standard ops run in torch on the same device. Shapes stay on the host, so that a step whose values lie on a GPU
    never waits for it and can be captured as a CUDA graph.

    Attributes:
        label: For people, e.g. "triton on NVIDIA H100, BF16".
        device: Where values lie.
        dtype: Of activations. Positions, angles, router's scores and logits are float32 whatever it is.
    """

    def __init__(
        self, run: Run, target: int, device: torch.device, activations: Activations, processors: int, tuning: Tuning
    ) -> None:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
        self.label = f"kernels on {where}, {activations}"
        self.device, self.dtype = device, DTYPES[activations]
        self.ops = OpKernels(
            TorchCall(run, target, partial(tuning.tile_index, target=target), poison=False), processors, tuning
        )
        self._copies: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._constants: dict[tuple[torch.dtype, tuple[int, ...], bytes], Tensor] = {}

    @classmethod
    def on_gpu(cls, activations: Activations = "F32") -> TritonKernels:
        """On torch's current CUDA device.

        Raises:
            BackendError: There is none, or Triton is missing.
        """
        load_triton()
        if not torch.cuda.is_available():
            raise BackendError(
                "the executor's Triton kernels",
                expected="an NVIDIA GPU and a torch for CUDA",
                got=f"torch {torch.__version__} without a CUDA device",
                fix="triton-interpreter runs the same kernels on a CPU, slowly.",
            )
        device = torch.device("cuda", torch.cuda.current_device())
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        tuning = tuning_for(torch.cuda.get_device_name(device))
        return cls(run_native, capability(device), device, activations, processors, tuning)

    @classmethod
    def interpreted(cls, activations: Activations = "F32") -> TritonKernels:
        """On the CPU, program by program: thousands of times slower than a GPU.

        Raises:
            BackendError: Triton is missing.
            InternalError: This process has imported Triton to compile.
        """
        from dsv3export.plugins.kernels.interpreter import interpret, start_interpreting

        start_interpreting()
        return cls(
            interpret, _INTERPRETED, torch.device("cpu"), activations, _INTERPRETED_PROGRAMS, Tuning("interpreter")
        )

    def __call__(
        self, node: ir.Node, inputs: Sequence[Argument], attributes: Mapping[str, Any]
    ) -> Tensor | tuple[Tensor, ...]:
        if node.domain != DOMAIN:
            return self._standard(node, [held(value) for value in inputs], attributes)
        if any(isinstance(value, StreamedBank) for value in inputs):
            return self._streamed(node, inputs, attributes)
        tensors = [self._here(held(value)) for value in inputs]
        if node.op_type == "Linear" and _decides(node):
            tensors[0] = tensors[0].float()
        return self.ops(node.op_type, tensors, attributes)

    def place(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A graph's run-time inputs on the device, activations in their type; caches keep theirs."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() and _CACHE not in name else None)
            for name, value in inputs.items()
        }

    def shown(self, value: Tensor) -> Tensor:
        """A value for an observer: on the host, activations in float32."""
        return value.to("cpu", torch.float32 if value.dtype == self.dtype else None)

    def _standard(
        self, node: ir.Node, inputs: list[Tensor], attributes: Mapping[str, Any]
    ) -> Tensor | tuple[Tensor, ...]:
        if node.op_type not in _SHAPED and any(value.device == self.device for value in inputs):
            inputs = [self._here(value) for value in inputs]
        if node.op_type == "RMSNormalization":
            inputs[1] = inputs[1].to(inputs[0].dtype)
        if node.op_type == "RotaryEmbedding":
            inputs[0] = inputs[0].float()
        result = by_definition(node, inputs, attributes)
        if isinstance(result, Tensor) and self._is_activation(node, inputs, result):
            return result.to(self.dtype)
        return result

    def _is_activation(self, node: ir.Node, inputs: Sequence[Tensor], result: Tensor) -> bool:
        """Activations come from tables and from rotation; float32 is also what integers were made into."""
        made = node.op_type in ("Gather", "RotaryEmbedding") or (
            node.op_type == "Cast" and inputs[0].is_floating_point()
        )
        return made and result.is_floating_point()

    def _streamed(self, node: ir.Node, inputs: Sequence[Argument], attributes: Mapping[str, Any]) -> Tensor:
        def through(x: Tensor, ids: Tensor, weights: Tensor, banks: Sequence[Tensor]) -> Tensor:
            given = [x, ids, weights, *(bank.to(self.device) for bank in banks)]
            return self.ops(node.op_type, given, attributes)[0]

        x, ids, weights = map(held, inputs[:3])
        return through_streamed_experts(through, x, ids, weights, inputs[3:])

    def _here(self, value: Tensor) -> Tensor:
        """A value on the device: a weight is copied there once, a small constant once for its content."""
        if value.device == self.device:
            return value
        if value.numel() <= _SMALL:
            key = value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            if key not in self._constants:
                self._constants[key] = value.to(self.device)
            return self._constants[key]
        if value not in self._copies:
            self._copies[value] = value.to(self.device)
        copy: Tensor = self._copies[value]
        return copy


def _decides(node: ir.Node) -> bool:
    """Whether a router reads what a node computes."""
    return any(user.op_type == "MoERoute" for user, _ in node.outputs[0].uses())
