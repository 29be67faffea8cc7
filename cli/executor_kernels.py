"""`--executor-kernels` of the commands that compute a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsv3export.cli.subject import find_subject
from dsv3export.errors import RequestError

if TYPE_CHECKING:
    from dsv3export.graphs.triton_kernels import Activations, TritonKernels

Function = TypeVar("Function", bound=Callable[..., Any])
GPU, INTERPRETER = "triton", "triton-interpreter"
_ACTIVATIONS: dict[str, Activations] = {"": "F32", ":bf16": "BF16", ":f16": "F16"}
CHOICES = tuple(f"{where}{suffix}" for where in (GPU, INTERPRETER) for suffix in _ACTIVATIONS)


def executor_kernels_option(function: Function) -> Function:
    """`--executor-kernels`, passed to the command as `executor_kernels`."""
    return click.option(
        "--executor-kernels",
        type=click.Choice(CHOICES),
        metavar="KERNELS",
        help="Compute a checkpoint by the Triton kernels in place of the ops' definitions: triton on the GPU, "
        "triton-interpreter on the CPU, slowly; with activations in float32, or :bf16 or :f16.",
    )(function)


def triton_kernels(choice: str | None, *paths: str) -> TritonKernels | None:
    """What was chosen to compute the checkpoints among `paths`.

    To be called before torch traces anything, as that may import Triton.

    Raises:
        RequestError: There is no checkpoint among them.
        BackendError: There is no GPU, or no Triton.
    """
    if choice is None:
        return None
    if all(find_subject(path).checkpoint is None for path in paths):
        raise RequestError(
            f"--executor-kernels {choice}",
            expected="a checkpoint, which the executor computes",
            got="engines alone",
            fix="Engines run on what they were built for.",
        )
    where, separator, dtype = choice.partition(":")
    activations = _ACTIVATIONS[separator + dtype]
    if where == INTERPRETER:
        from dsv3export.plugins.kernels.interpreter import start_interpreting

        start_interpreting()
    # torch comes with this import.
    from dsv3export.graphs.triton_kernels import TritonKernels

    return TritonKernels.on_gpu(activations) if where == GPU else TritonKernels.interpreted(activations)


def rounds_activations(choice: str | None) -> bool:
    """Whether the chosen kernels compute in fewer than float32's bits."""
    return choice is not None and ":" in choice
