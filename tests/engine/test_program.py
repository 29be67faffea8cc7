"""graph/program.json: written and read again, and refused where a name leads nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dsv3export.engine.program import Call, Kind, Limits, Port, Program
from dsv3export.errors import EngineError

HIDDEN = Port("hidden", "BF16", ("B", "S", 8))
PROGRAM = Program(
    flavour="tensorrt-rtx",
    version="1.7.1",
    compute="bf16",
    cache="BF16",
    limits=Limits(8, 1, 256, 4096),
    devices=("sm89",),
    kinds={
        "embed": Kind(
            {"decode": "embed.decode", "prefill": "embed.prefill"},
            (Port("input_ids", "I64", ("B", "S")), Port("length", "I64", (1,), host=True)),
            (HIDDEN,),
            (Port("table", "I4", (16, 8)),),
            {},
        ),
        "layer": Kind(
            {"decode": "layer.decode", "prefill": "layer.prefill"},
            (HIDDEN, Port("cache", "BF16", ("B", 1, 4096, 4))),
            (Port("hidden_out", "BF16", ("B", "S", 8)), Port("updated", "BF16", ("B", 1, 4096, 4))),
            (),
            {"updated": "cache"},
        ),
    },
    calls=(
        Call("embed", "", {"input_ids": "input_ids", "length": "length"}, {"hidden": "embed.hidden"}, {"table": "w"}),
        Call(
            "layer",
            "layers.0",
            {"hidden": "embed.hidden", "cache": "latent_cache.0"},
            {"hidden_out": "layers.0.hidden", "updated": "latent_cache.0.updated"},
            {},
        ),
    ),
    inputs=("input_ids", "length", "latent_cache.0"),
    outputs=("layers.0.hidden", "latent_cache.0.updated"),
)


def test_a_program_is_read_as_it_was_written() -> None:
    assert Program.from_json(PROGRAM.to_json()) == PROGRAM
    assert Program.from_json(PROGRAM.to_json()).to_json() == PROGRAM.to_json()


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


BAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "another format": (_set("format", to="x"), "dsv3export-tensorrt-program"),
    "another version": (_set("format_version", to=9), "got 9"),
    "another flavour": (_set("flavour", to="onnx"), "'tensorrt-rtx' or 'tensorrt'"),
    "an unknown key": (_set("more", to=1), "only the keys"),
    "no slots": (_set("limits", "slots", to=0), "limits.slots"),
    "a huge capacity": (_set("limits", "capacity", to=1 << 40), "limits.capacity"),
    "a dtype": (_set("kinds", "layer", "inputs", 0, "dtype", to="F64"), "inputs[0].dtype"),
    "a negative size": (_set("kinds", "layer", "inputs", 0, "shape", to=["B", -1]), "shape[1]"),
    "a rank": (_set("kinds", "layer", "inputs", 0, "shape", to=[1] * 9), "at most 8 dimensions"),
    "host": (_set("kinds", "layer", "inputs", 0, "host", to=1), "true or false"),
    "a weight of unknown size": (_set("kinds", "embed", "weights", 0, "shape", to=["N"]), "weights of fixed shapes"),
    "a tensor twice": (_set("kinds", "layer", "inputs", 1, "name", to="hidden"), "each tensor's name once"),
    "an alias": (_set("kinds", "layer", "aliases", to={"updated": "nothing"}), "outputs and inputs of the kind"),
    "a phase": (_set("kinds", "layer", "engines", to={"decode": "d"}), "'prefill'"),
    "an unknown kind": (_set("calls", 1, "kind", to="mtp"), "calls[1]: expected a kind of the program, got 'mtp'"),
    "a weight that is not given": (_set("calls", 0, "weights", to={}), "'table' amiss"),
    "a value from nowhere": (_set("calls", 1, "inputs", "hidden", to="layers.9.hidden"), "'layers.9.hidden'"),
    "an output from nowhere": (_set("outputs", to=["logits"]), "'logits'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    change, said = BAD[case]
    document = json.loads(PROGRAM.to_json())
    change(document)
    with pytest.raises(EngineError) as refusal:
        Program.from_json(json.dumps(document).encode())
    assert said in str(refusal.value)
