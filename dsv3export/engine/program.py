"""graph/program.json of a TensorRT engine: which engine files there are, and in what order they are called.

graph/mtp.json says the same of the MTP layer. Each layer kind has an engine for each phase. All weights are inputs: a
call says which weight of the table each one is. Plain dataclasses, strict parsing, as engine.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from dsv3export.engine.manifest import COMPUTE, Compute
from dsv3export.engine.typed_json import REBUILD, JsonValue, parse_json
from dsv3export.errors import EngineError

FORMAT, VERSION = "dsv3export-tensorrt-program", 1
# Names of the programs among the manifest's `graphs`: of the trunk, and of the MTP layer.
PROGRAM, MTP_PROGRAM = "program", "mtp"
Phase = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = get_args(Phase)
# safetensors' names; I4: two numbers in a byte, the low half first, in the weight table as U8 of half the width.
DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "I4", "I8", "U8", "I32", "I64", "BOOL")
_MAX_RANK = 8
_MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Port:
    """An input or output of an engine.

    Attributes:
        name: The tensor's.
        dtype: One of `DTYPES`.
        shape: Sizes, and symbols of those that are known at run time only: B slots, S tokens of each, R rows of logits.
        host: Whether TensorRT reads it on the host, as it is a size.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    host: bool = False


@dataclass(frozen=True)
class Kind:
    """A layer kind.

    Attributes:
        engines: Phase -> the engine's name in the manifest's `graphs`.
        inputs, outputs: Run-time tensors.
        weights: Inputs that are weights; of fixed shapes.
        aliases: Output -> the input whose memory it must have.
    """

    engines: Mapping[Phase, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: tuple[Port, ...]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Call:
    """A layer.

    Attributes:
        kind: Its kind.
        path: Its place in the model, e.g. ``layers.3``; empty for embedding and head.
        inputs: The kind's input -> value of the program.
        outputs: The kind's output -> value of the program.
        weights: The kind's weight -> name in the weight table.
    """

    kind: str
    path: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Limits:
    """What the engines' profiles reach to.

    Attributes:
        slots: Sequences in one step.
        draft: Further tokens of a slot in a decode step.
        chunk: Tokens of a slot in a prefill step.
        capacity: Rows of a slot of the cache, exactly.
    """

    slots: int
    draft: int
    chunk: int
    capacity: int


@dataclass(frozen=True)
class Program:
    """The content of program.json.

    Attributes:
        flavour: ``tensorrt-rtx`` or ``tensorrt``.
        version: TensorRT's, which must be the same where the engines are loaded.
        compute: What activations are computed in.
        cache: dtype of the latent cache.
        limits: Of a step.
        devices: Compute capabilities that the engines were built for, e.g. ``sm89``; empty for the flavour's default.
        kinds, calls: See `Kind` and `Call`.
        inputs, outputs: Values that come from outside and that go there.
    """

    flavour: str
    version: str
    compute: Compute
    cache: str
    limits: Limits
    devices: tuple[str, ...]
    kinds: Mapping[str, Kind]
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def to_json(self) -> bytes:
        """Deterministic: in the order of the build, a kind and a call a line."""
        document: dict[str, Any] = {"format": FORMAT, "format_version": VERSION, **asdict(self)}
        kinds, calls = document.pop("kinds"), document.pop("calls")
        members = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items()]
        of_kinds = ",\n".join(f"  {json.dumps(name)}: {json.dumps(kind)}" for name, kind in kinds.items())
        of_calls = ",\n".join(f"  {json.dumps(call)}" for call in calls)
        members += [f'"kinds": {{\n{of_kinds}\n}}', f'"calls": [\n{of_calls}\n]']
        return ("{\n" + ",\n".join(members) + "\n}\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Program:
        """Raises EngineError for anything that is not a whole program: each name that a call uses must be there."""
        document = parse_json(data, "program.json")
        fields = document.fields("format", "format_version", *cls.__dataclass_fields__)
        if fields["format"].text() != FORMAT:
            fields["format"].fail(FORMAT)
        if fields["format_version"].integer() != VERSION:
            fields["format_version"].fail(str(VERSION))
        program = cls(
            flavour=fields["flavour"].choice("tensorrt-rtx", "tensorrt"),
            version=fields["version"].text(),
            compute=cast("Compute", fields["compute"].choice(*COMPUTE)),
            cache=fields["cache"].choice(*DTYPES),
            limits=_limits(fields["limits"]),
            devices=_texts(fields["devices"]),
            kinds={name: _kind(kind) for name, kind in fields["kinds"].mapping().items()},
            calls=tuple(_call(call) for call in fields["calls"].array()),
            inputs=_texts(fields["inputs"]),
            outputs=_texts(fields["outputs"]),
        )
        _check(program)
        return program


def _limits(document: JsonValue) -> Limits:
    fields = document.fields(*Limits.__dataclass_fields__)
    draft = fields["draft"].integer(maximum=_MAX_SIZE)
    slots, chunk, capacity = (
        fields[name].integer(minimum=1, maximum=_MAX_SIZE) for name in ("slots", "chunk", "capacity")
    )
    return Limits(slots, draft, chunk, capacity)


def _kind(document: JsonValue) -> Kind:
    fields = document.fields(*Kind.__dataclass_fields__)
    engines = fields["engines"].fields(*PHASES)
    inputs, outputs, weights = (
        tuple(_port(port) for port in fields[name].array()) for name in ("inputs", "outputs", "weights")
    )
    kind = Kind({phase: engines[phase].text() for phase in PHASES}, inputs, outputs, weights, _names(fields["aliases"]))
    names = [port.name for port in (*inputs, *outputs, *weights)]
    if len(set(names)) != len(names):
        document.fail("each tensor's name once")
    if any(isinstance(size, str) for port in weights for size in port.shape):
        fields["weights"].fail("weights of fixed shapes")
    givers = {port.name for port in inputs}
    takers = {port.name for port in outputs}
    if not (kind.aliases.keys() <= takers and set(kind.aliases.values()) <= givers):
        fields["aliases"].fail("outputs and inputs of the kind")
    return kind


def _port(document: JsonValue) -> Port:
    fields = document.fields(*Port.__dataclass_fields__)
    sizes = fields["shape"].array()
    if len(sizes) > _MAX_RANK:
        fields["shape"].fail(f"at most {_MAX_RANK} dimensions")
    shape = tuple(size.text() if isinstance(size.value, str) else size.integer(maximum=_MAX_SIZE) for size in sizes)
    if not isinstance(fields["host"].value, bool):
        fields["host"].fail("true or false")
    return Port(fields["name"].text(), fields["dtype"].choice(*DTYPES), shape, fields["host"].value)


def _call(document: JsonValue) -> Call:
    fields = document.fields(*Call.__dataclass_fields__)
    inputs, outputs, weights = (_names(fields[name]) for name in ("inputs", "outputs", "weights"))
    return Call(fields["kind"].text(), fields["path"].text(), inputs, outputs, weights)


def _names(document: JsonValue) -> dict[str, str]:
    return {key: value.text() for key, value in document.mapping().items()}


def _texts(document: JsonValue) -> tuple[str, ...]:
    return tuple(item.text() for item in document.array())


def _check(program: Program) -> None:
    """Raises EngineError unless each call has a kind, gives it what it takes, and takes what is there already."""
    known = set(program.inputs)
    for place, call in enumerate(program.calls):
        where = f"program.json: calls[{place}]"
        if call.kind not in program.kinds:
            raise EngineError(where, expected="a kind of the program", got=repr(call.kind), fix=REBUILD)
        kind = program.kinds[call.kind]
        for given, ports in ((call.inputs, kind.inputs), (call.outputs, kind.outputs), (call.weights, kind.weights)):
            wanted = {port.name for port in ports}
            if given.keys() != wanted:
                odd = sorted(given.keys() ^ wanted)[0]
                raise EngineError(where, expected=f"the tensors of {call.kind}", got=f"{odd!r} amiss", fix=REBUILD)
        if unknown := sorted(set(call.inputs.values()) - known):
            raise EngineError(where, expected="values that are computed before", got=repr(unknown[0]), fix=REBUILD)
        known |= set(call.outputs.values())
    if missing := sorted(set(program.outputs) - known):
        raise EngineError("program.json: outputs", expected="computed values", got=repr(missing[0]), fix=REBUILD)
