"""What a program's values are to a language model: token ids, caches, logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3export.dtypes import itemsize
from dsv3export.engine.program import Call, Port, Program
from dsv3export.engine.typed_json import REBUILD
from dsv3export.errors import EngineError
from dsv3export.runtime.device import ALIGNMENT
from dsv3export.runtime.latent_cache import CacheLayout

CACHE, LENGTH, LOGITS, ROWS = "latent_cache.", "length", "logits", "logit_rows"
IDS, START = "input_ids", "start"
# What a trunk and an MTP layer hand on of each token.
FINAL_HIDDEN, DRAFT_HIDDEN = "final_hidden", "draft_hidden"


@dataclass(frozen=True)
class Signature:
    """A program as a session sees it.

    Attributes:
        ports: Value -> the tensor that it is.
        caches: Cache of each layer -> the value that it is called when it has been updated.
        slot_bytes: What a slot takes in one layer's cache.
        layout: Of the latent cache.
        vocab_size: Width of the logits.
        hidden: The value that has each token's hidden state after the last norm, [B, S, D].
        body: The calls that every token goes through.
        tail: Those after them that work on the rows that logits are wanted of.
        body_fills_caches: Whether no call of the tail updates a cache.
    """

    ports: Mapping[str, Port]
    caches: Mapping[str, str]
    slot_bytes: int
    layout: CacheLayout
    vocab_size: int
    hidden: str
    body: tuple[Call, ...]
    tail: tuple[Call, ...]
    body_fills_caches: bool


def read_signature(program: Program, where: str, first_layer: int = 0) -> Signature:
    """Raises EngineError where a program is not that of a language model with caches that are updated in place.

    Args:
        first_layer: The number of the first of the layers that have a cache.
    """
    ports = _ports_by_value(program)
    layers = sum(name.startswith(CACHE) for name in program.inputs)
    names = [f"{CACHE}{first_layer + layer}" for layer in range(layers)]
    known = {*program.inputs, *program.outputs} & ports.keys()
    hidden = DRAFT_HIDDEN if DRAFT_HIDDEN in program.outputs else FINAL_HIDDEN
    if missing := sorted({IDS, START, ROWS, LOGITS, hidden, *names} - known):
        raise EngineError(where, expected=f"a value {missing[0]!r}", got="none", fix=REBUILD)
    logits = ports[LOGITS]
    if logits.dtype != "F32" or not isinstance(logits.shape[-1], int):
        raise EngineError(where, expected="float32 logits of a fixed width", got=f"{logits.dtype}", fix=REBUILD)
    dtype, width = _cache_row(program, [ports[name] for name in names], where)
    slot_bytes = program.limits.capacity * width * itemsize(dtype)
    if slot_bytes % ALIGNMENT and program.limits.slots > 1:
        raise EngineError(
            where, expected=f"a slot's cache of a multiple of {ALIGNMENT} bytes", got=str(slot_bytes),
            fix=REBUILD,
        )  # fmt: skip
    late = [any("R" in port.shape for port in program.kinds[call.kind].inputs) for call in program.calls]
    tail = tuple(call for call, is_late in zip(program.calls, late, strict=True) if is_late)
    return Signature(
        ports=ports,
        caches={name: _updated(program, name, where) for name in names},
        slot_bytes=slot_bytes,
        layout=CacheLayout(layers, width, dtype),
        vocab_size=logits.shape[-1],
        hidden=hidden,
        body=tuple(call for call, is_late in zip(program.calls, late, strict=True) if not is_late),
        tail=tail,
        body_fills_caches=not any(program.kinds[call.kind].aliases for call in tail),
    )


def _ports_by_value(program: Program) -> dict[str, Port]:
    """The tensor that each value is, as the first call has it."""
    ports: dict[str, Port] = {}
    for call in program.calls:
        kind = program.kinds[call.kind]
        for port, names in [(p, call.inputs) for p in kind.inputs] + [(p, call.outputs) for p in kind.outputs]:
            ports.setdefault(names[port.name], port)
    return ports


def _cache_row(program: Program, caches: list[Port], where: str) -> tuple[str, int]:
    """Type and width of the rows, one for all layers: [B, 1, capacity, width]."""
    shapes = {(port.dtype, port.shape[1:]) for port in caches}
    dtype, shape = min(shapes, default=("none", ()))
    width = shape[-1] if shape else 0
    if len(shapes) != 1 or not isinstance(width, int) or shape != (1, program.limits.capacity, width):
        expected = f"caches of one shape, with {program.limits.capacity} rows a slot"
        raise EngineError(where, expected=expected, got=f"{dtype} {list(shape)}", fix=REBUILD)
    return dtype, width


def _updated(program: Program, cache: str, where: str) -> str:
    for call in program.calls:
        for output, given in program.kinds[call.kind].aliases.items():
            if call.inputs[given] == cache:
                return call.outputs[output]
    raise EngineError(where, expected=f"a call that updates {cache} in place", got="none", fix=REBUILD)
