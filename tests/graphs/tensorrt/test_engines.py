"""TensorRT-RTX engines of the trained model: every precision, from both checkpoints; what lies in the directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export.engine.manifest import Manifest
from dsv3export.engine.program import MTP_PROGRAM, PHASES, PROGRAM, Limits, Program
from dsv3export.engine.reader import EngineFiles
from tests.support.command_line import run_here

Engines = Callable[[Any, str], Path]
KINDS = {PROGRAM: {"embed", "dense_layer", "moe_layer", "head"}, MTP_PROGRAM: {"embed", "mtp_layer"}}
# dtypes of a projection's and of the experts' weight inputs, as TensorRT sees them.
WEIGHTS = {
    "bf16": ("BF16", "BF16"),
    "fp8": ("F8_E4M3", "I8"),
    "int8": ("I8", "I8"),
    "int4": ("I4", "U8"),
}


def program_of(engine: Path, name: str = PROGRAM) -> Program:
    return Program.from_json(EngineFiles.open(engine).graph(name))


@pytest.mark.parametrize("precision", WEIGHTS)
@pytest.mark.parametrize("variant", ["fp8", "bf16"])
def test_each_kind_has_an_engine_for_each_phase(variant: str, precision: str, rtx_engine: Engines) -> None:
    engine = rtx_engine(variant, precision)
    files = EngineFiles.open(engine)
    program = program_of(engine)
    assert {name: program_of(engine, name).kinds.keys() for name in KINDS} == KINDS
    engines = {f"{kind}.{phase}" for kind in set().union(*KINDS.values()) for phase in PHASES}
    assert files.manifest.graphs.keys() == {*KINDS, *engines}
    assert (program.flavour, program.compute, program.cache) == ("tensorrt-rtx", "bf16", "BF16")
    assert files.manifest.backend.name == "tensorrt-rtx"
    assert (files.manifest.backend.built_with, files.manifest.backend.compute) == (program.version, "bf16")
    assert files.manifest.recipe.cache == "bf16"
    assert program.limits == Limits(slots=8, draft=1, chunk=256, capacity=1024)
    ports = {port.name: port for port in program.kinds["moe_layer"].weights}
    projections = {port.dtype for name, port in ports.items() if "q_a_proj" in name and len(port.shape) == 2}
    assert WEIGHTS[precision][0] in projections
    # Weights are inputs: no engine holds any.
    assert all(graph.size < 10_000_000 for graph in files.manifest.graphs.values())


@pytest.mark.parametrize("precision", WEIGHTS)
def test_each_call_binds_weights_of_the_table(precision: str, rtx_engine: Engines) -> None:
    """Each formal weight of each layer: a row of the table with just as many bytes."""
    files = EngineFiles.open(rtx_engine("fp8", precision))
    trunk, mtp = (Program.from_json(files.graph(name)) for name in KINDS)
    assert [call.path for call in trunk.calls] == ["", "layers.0", "layers.1", "layers.2", "layers.3", ""]
    assert [call.kind for call in trunk.calls] == ["embed", "dense_layer", *["moe_layer"] * 3, "head"]
    assert [(call.kind, call.path) for call in mtp.calls] == [("embed", ""), ("mtp_layer", "layers.4")]
    bound = set()
    kinds = {**trunk.kinds, **mtp.kinds}
    for call in (*trunk.calls, *mtp.calls):
        for port in kinds[call.kind].weights:
            entry = files.entries[call.weights[port.name]]
            bound.add(entry.name)
            if port.dtype == "I4":
                assert (entry.dtype, entry.shape) == ("U8", (*port.shape[:-1], port.shape[-1] // 2))
            elif entry.dtype != port.dtype:
                # 8 bits that the network reads as a plain byte
                assert {port.dtype, entry.dtype} <= {"I8", "U8", "F8_E4M3"} and entry.shape == port.shape
            else:
                assert entry.shape == port.shape
    assert bound == files.entries.keys()


def test_the_cache_is_updated_where_it_lies(rtx_engine: Engines) -> None:
    kind = program_of(rtx_engine("fp8", "fp8")).kinds["moe_layer"]
    inputs, outputs = ({port.name: port for port in ports} for ports in (kind.inputs, kind.outputs))
    assert kind.aliases == {"updated": "cache"}
    assert inputs["cache"].shape == outputs["updated"].shape == ("B", 1, 1024, 160)
    assert inputs["cache"].dtype == outputs["updated"].dtype == "BF16"
    assert (inputs["length"].host, inputs["hidden"].host) == (True, False)
    assert (inputs["cos"].dtype, inputs["hidden"].dtype) == ("F32", "BF16")


def test_the_mtp_layer_has_a_cache_with_room_for_drafts(rtx_engine: Engines) -> None:
    program = program_of(rtx_engine("fp8", "fp8"), MTP_PROGRAM)
    kind = program.kinds["mtp_layer"]
    assert program.limits == Limits(slots=8, draft=1, chunk=256, capacity=1088)
    assert kind.aliases == {"updated": "cache"}
    shapes = {port.name: port.shape for port in (*kind.inputs, *kind.outputs)}
    assert shapes["cache"] == ("B", 1, 1088, 160)
    assert (shapes["final_hidden"], shapes["logits"]) == (("B", "S", 256), ("R", 2048))
    assert program.inputs == ("input_ids", "start", "final_hidden", "latent_cache.4", "logit_rows", "length")


def test_fp8_weights_stay_in_the_checkpoint(rtx_engine: Engines) -> None:
    entries = Manifest.read(rtx_engine("fp8", "fp8")).weights
    stored = [entry for entry in entries if entry.location == "engine"]
    assert sum(entry.nbytes for entry in entries) > 100 * sum(entry.nbytes for entry in stored)
    assert {entry.dtype for entry in stored} == {"F32"}


def test_inspect_tells_of_the_engines(rtx_engine: Engines) -> None:
    engine = rtx_engine("fp8", "fp8")
    facts = json.loads(run_here("inspect", engine, "--json").out)["engine"]
    assert facts["program"]["limits"] == {"slots": 8, "draft": 1, "chunk": 256, "capacity": 1024}
    assert facts["program"]["kinds"]["moe_layer"]["calls"] == 3
    shown = " ".join(run_here("inspect", engine).out.split())
    for text in (
        "tensorrt-rtx",
        "bf16, latent cache BF16",
        "8 slots of 1024 tokens",
        "moe_layer 3",
        "mtp_layer 1",
        "prefill engine",
    ):
        assert text in shown
