"""graph/program.json of a rank: the order of its graph segments and of what it communicates between them.

The steps work on named values. A run takes values that were given or computed before and adds others; an all-reduce
leaves the sum under its value's name; a gather leaves the whole on the first rank of the group and takes the value from
the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dsv3export.engine.parallel import GROUPS, Group
from dsv3export.engine.typed_json import REBUILD, JsonValue, parse_json
from dsv3export.errors import EngineError

FORMAT, VERSION = "dsv3export-segments", 1
PARTS = ("trunk", "mtp")


@dataclass(frozen=True)
class Run:
    """Run a segment: a graph of the manifest by its name; `inputs` and `outputs` are the graph's own names."""

    segment: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"run": self.segment, "inputs": self.inputs, "outputs": self.outputs}


@dataclass(frozen=True)
class AllReduce:
    """Sum a value over a group, in place."""

    value: str
    group: Group

    def to_json(self) -> dict[str, Any]:
        return {"all_reduce": self.value, "group": self.group}


@dataclass(frozen=True)
class Gather:
    """Put the parts of a value together along an axis, on the first rank of a group."""

    value: str
    group: Group
    axis: int

    def to_json(self) -> dict[str, Any]:
        return {"gather": self.value, "group": self.group, "axis": self.axis}


@dataclass(frozen=True)
class Recv:
    """Receive a value [B, S, D] from the rank of the same place in the previous stage."""

    value: str

    def to_json(self) -> dict[str, Any]:
        return {"recv": self.value, "from": "previous"}


@dataclass(frozen=True)
class Send:
    """Send a value [B, S, D] to the rank of the same place in the next stage."""

    value: str

    def to_json(self) -> dict[str, Any]:
        return {"send": self.value, "to": "next"}


Step = Run | AllReduce | Gather | Recv | Send


@dataclass(frozen=True)
class SegmentPart:
    """The steps of the trunk or of the MTP layer.

    Attributes:
        inputs: Values that the caller gives; latent caches among them, which runs update in place.
        outputs: Values that the caller gets.
        steps: In order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class SegmentProgram:
    """The content of program.json: the trunk's part and, on the last stage's ranks, that of the MTP layer."""

    parts: Mapping[str, SegmentPart]

    def to_json(self) -> bytes:
        """Deterministic, a step a line."""
        blocks = []
        for name, part in self.parts.items():
            steps = ",\n".join(f"  {json.dumps(step.to_json())}" for step in part.steps)
            head = f'"inputs": {json.dumps(part.inputs)},\n"outputs": {json.dumps(part.outputs)}'
            blocks.append(f'{json.dumps(name)}: {{\n{head},\n"steps": [\n{steps}\n]}}')
        parts = ",\n".join(blocks)
        return f'{{\n"format": "{FORMAT}",\n"format_version": {VERSION},\n"parts": {{\n{parts}\n}}}}\n'.encode()

    @classmethod
    def from_json(cls, data: bytes) -> SegmentProgram:
        """Raises EngineError for anything that is not a whole program: each value that a step uses must be there."""
        fields = parse_json(data, "program.json").fields("format", "format_version", "parts")
        if fields["format"].text() != FORMAT:
            fields["format"].fail(FORMAT)
        if fields["format_version"].integer() != VERSION:
            fields["format_version"].fail(str(VERSION))
        parts = {name: _part(part) for name, part in fields["parts"].mapping().items()}
        if "trunk" not in parts or parts.keys() - set(PARTS):
            fields["parts"].fail("a trunk, and mtp at most")
        return cls(parts)


def _part(document: JsonValue) -> SegmentPart:
    fields = document.fields("inputs", "outputs", "steps")
    part = SegmentPart(
        _names(fields["inputs"]), _names(fields["outputs"]), tuple(_step(step) for step in fields["steps"].array())
    )
    known = set(part.inputs)
    for place, step in enumerate(part.steps):
        used, made = _uses(step)
        if missing := sorted(used - known):
            what = f"{fields['steps'].where}[{place}]"
            raise EngineError(what, expected="values that are there", got=repr(missing[0]), fix=REBUILD)
        known |= made
    if missing := sorted(set(part.outputs) - known):
        raise EngineError(fields["outputs"].where, expected="computed values", got=repr(missing[0]), fix=REBUILD)
    return part


def _uses(step: Step) -> tuple[set[str], set[str]]:
    """The values that a step takes, and those that it adds."""
    if isinstance(step, Run):
        return set(step.inputs), set(step.outputs)
    return (set(), {step.value}) if isinstance(step, Recv) else ({step.value}, set())


def _step(document: JsonValue) -> Step:
    kinds = document.mapping().keys() & {"run", "all_reduce", "gather", "recv", "send"}
    if len(kinds) != 1:
        document.fail("one of run, all_reduce, gather, recv and send")
    (kind,) = kinds
    if kind == "run":
        fields = document.fields("run", "inputs", "outputs")
        return Run(fields["run"].text(), _names(fields["inputs"]), _names(fields["outputs"]))
    if kind == "recv":
        fields = document.fields("recv", "from")
        fields["from"].choice("previous")
        return Recv(fields["recv"].text())
    if kind == "send":
        fields = document.fields("send", "to")
        fields["to"].choice("next")
        return Send(fields["send"].text())
    fields = document.fields(kind, "group", *(("axis",) if kind == "gather" else ()))
    group = cast("Group", fields["group"].choice(*GROUPS))
    if kind == "all_reduce":
        return AllReduce(fields[kind].text(), group)
    return Gather(fields[kind].text(), group, fields["axis"].integer(minimum=-8, maximum=8))


def _names(document: JsonValue) -> tuple[str, ...]:
    return tuple(name.text() for name in document.array())
