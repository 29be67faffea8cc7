"""`dsv3export inspect`: what a checkpoint, an engine or a config holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import PathName, json_option, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.tables import bytes_text, count_text, counted, print_facts, print_json, print_table
from dsv3export.engine.program import PHASES
from dsv3export.errors import EngineError
from dsv3export.recipe import Recipe
from dsv3export.recipe.recipe import DESCRIPTION_COLUMNS

EXAMPLES = (
    "dsv3export inspect examples/tiny-dsv3",
    "dsv3export inspect examples/tiny-dsv3 --verify",
    "dsv3export inspect tiny.engine --json | jq .weights",
    "dsv3export inspect deepseek-v3",
)


@click.command("inspect", cls=Command, examples=EXAMPLES)
@click.argument("path", type=PathName())
@click.option("--verify", is_flag=True, help="Read every weight: finite values, an engine's digests.")
@quiet_option
@json_option("Print one line of JSON.")
@verbose_option
def command(path: str, verify: bool, quiet: bool, as_json: bool) -> None:
    """Say what PATH holds: a checkpoint, an engine, a config.json, or a preset's name.

    Shows config, layers by kind, parameters (total, active, MTP), bytes of weights by dtype, bytes of cache per token,
    and of an engine also recipe, backend, graphs, and whether it and its checkpoint are unaltered. An engine that
    cannot be used is described all the same, then the exit code is 2.
    """
    from dsv3export.cli.inspection import describe
    from dsv3export.cli.ranks import show_ranks
    from dsv3export.cli.subject import find_subject
    from dsv3export.cli.verification import verify_values
    from dsv3export.engine.reader import EngineFiles

    subject = find_subject(path)
    files, problem = None, None
    if subject.manifest is not None:
        try:
            files = EngineFiles.open(path, "full" if verify else "auto")
        except EngineError as error:
            problem = error
    if subject.checkpoint is not None and verify:
        with progress_on_stderr(quiet) as progress:
            verify_values(subject.checkpoint, progress)
    facts = describe(subject, files, None if problem is None else str(problem))
    if as_json:
        print_json(facts)
    else:
        show(facts)
        if subject.manifest is not None and subject.manifest.parallel is not None:
            parallel = subject.manifest.parallel
            show_ranks(parallel.layout, parallel.ranks)
    if problem is not None:
        raise problem


def show(facts: dict[str, Any]) -> None:
    """Prints what `inspection.describe` found, for people."""
    _show_model(facts)
    parameters = facts["parameters"]
    components = [(name, count_text(count)) for name, count in parameters["by_component"].items() if count]
    print_table("Parameters by component", ("component", "parameters"), components, right=("parameters",))
    if "weights" in facts:
        _show_weights(facts["weights"])
    if "engine" in facts:
        _show_engine(facts["engine"])
    config = [(key, _plain(value)) for key, value in facts["config"].items()]
    print_facts("Config", config)


def _show_model(facts: dict[str, Any]) -> None:
    parameters, cache = facts["parameters"], facts["cache"]
    sizes = cache["bytes_per_token"]
    formats = sizes if cache["format"] is None else [cache["format"]]
    per_token = ", ".join(f"{bytes_text(sizes[format])} in {format}" for format in formats)
    layers = "; ".join(f"{len(layers)} {kind} ({_ranges(layers)})" for kind, layers in facts["layers"].items())
    mtp = f", {count_text(parameters['mtp'])} more in MTP" if parameters["mtp"] else ""
    print_facts(
        f"{facts['path']} ({facts['kind']})",
        [
            ("model type", facts["config"]["model_type"]),
            ("layers", layers),
            (
                "parameters",
                f"{count_text(parameters['total'])} total, {count_text(parameters['active'])} active per token{mtp}",
            ),
            ("cache per token", f"{cache['elements_per_token']:,} elements: {per_token}"),
            ("longest sequence", f"{cache['max_tokens']:,} tokens"),
        ],
    )


def _show_weights(weights: dict[str, Any]) -> None:
    rows = [(dtype, bytes_text(size)) for dtype, size in weights["bytes_by_dtype"].items()]
    for part in ("stored", "referenced"):
        if part in weights:
            where = "in the engine" if part == "stored" else "in the checkpoint"
            rows.append((f"{where}: {counted(weights[part]['tensors'], 'tensor')}", bytes_text(weights[part]["bytes"])))
    rows.append(
        (
            f"all: {counted(weights['tensors'], 'tensor')} in {counted(weights['files'], 'file')}",
            bytes_text(weights["bytes"]),
        )
    )
    print_table("Weights", ("dtype", "size"), rows, right=("size",))


def _show_engine(engine: dict[str, Any]) -> None:
    backend = engine["backend"]
    state = "usable; files and checkpoint are as they were built" if engine["problem"] is None else engine["problem"]
    print_facts(
        "Engine",
        [
            ("built by", engine["producer"]),
            ("recipe", engine["recipe"]["precision"]),
            *([("calibration", _text(engine["calibration"]))] if engine["calibration"] is not None else []),
            *([("layers", _part(engine["layers"]))] if engine["layers"] is not None else []),
            ("backend", f"{backend['name']} {backend['built_with']}, opset {backend['opset']}"),
            *_reach(engine),
            ("checkpoint", engine["checkpoint"]),
            ("state", state),
        ],
    )
    print_table("Recipe", DESCRIPTION_COLUMNS, Recipe.from_json(engine["recipe"]).describe())
    rows = [
        (name, graph["file"], _count(graph["nodes"]), _count(graph["function_nodes"]), bytes_text(graph["bytes"]))
        for name, graph in engine["graphs"].items()
    ]
    columns = ("graph", "file", "nodes", "nodes in functions", "size")
    if engine["program"] is None:
        print_table("Graphs", columns, rows, right=columns[2:])
    else:
        _show_kinds(engine)


def _reach(engine: dict[str, Any]) -> list[tuple[str, str]]:
    """Where an engine runs, and what its profiles reach to."""
    program = engine["program"]
    if program is None:
        return [("providers", _providers(engine["backend"]))]
    limits = program["limits"]
    steps = f"{1 + limits['draft']} tokens of each when decoding, {limits['chunk']} in prefill"
    return [
        ("computes in", f"{engine['backend']['compute']}, latent cache {program['cache']}"),
        ("devices", ", ".join(program["devices"]) or "the default of this TensorRT"),
        ("reaches to", f"{counted(limits['slots'], 'slot')} of {limits['capacity']} tokens; in a step {steps}"),
    ]


def _show_kinds(engine: dict[str, Any]) -> None:
    """TensorRT's engines: a row per layer kind."""
    kinds, graphs = engine["program"]["kinds"], engine["graphs"]
    rows = [
        (name, str(kind["calls"]), str(kind["weights"]), *(_engine_size(graphs, kind, phase) for phase in PHASES))
        for name, kind in kinds.items()
    ]
    columns = ("layer kind", "calls", "weights of each", *(f"{phase} engine" for phase in PHASES))
    print_table("Engines", columns, rows, right=columns[1:])


def _engine_size(graphs: dict[str, Any], kind: dict[str, Any], phase: str) -> str:
    return bytes_text(graphs[kind["engines"][phase]]["bytes"])


def _providers(backend: dict[str, Any]) -> str:
    """E.g. `built for cuda, integer and fp8 weights in bf16; runs on cpu too`."""
    built_for, *others = backend["providers"]
    compute = "" if backend["compute"] == "fp32" else f", integer and fp8 weights in {backend['compute']}"
    return f"built for {built_for}{compute}" + "".join(f"; runs on {other} too" for other in others)


def _text(calibration: dict[str, Any]) -> str:
    sequences, tokens = calibration["sequences"], calibration["tokens_per_sequence"]
    return f"{counted(sequences, 'sequence')} of {tokens} tokens, text SHA-256 {calibration['text_sha256']}"


def _part(layers: Sequence[int]) -> str:
    return f"only {_ranges(layers)}: a slice for measuring at true shapes, not a model that writes sense"


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> '0-2, 5'."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)
