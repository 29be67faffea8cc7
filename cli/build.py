"""`dsv3export build`: a checkpoint becomes an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.byte_size import byte_size
from dsv3export.cli.capabilities import BACKENDS, CACHE_FORMATS, COMPUTE, PRECISIONS, PROVIDERS
from dsv3export.cli.command import Command
from dsv3export.cli.options import PathName, json_option, quiet_option, verbose_option
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.ranks import ranks_facts, show_ranks
from dsv3export.cli.tables import bytes_text, counted, print_json
from dsv3export.cli.tensorrt_options import tensorrt_options

if TYPE_CHECKING:
    from dsv3export.engine.manifest import Compute, Provider
    from dsv3export.graphs.backend import TensorRTOptions
    from dsv3export.graphs.build import BuildReport


EXAMPLES = (
    "dsv3export build examples/tiny-dsv3 -o tiny.engine",
    "dsv3export build path/to/DeepSeek-V3 -o v3.engine --copy-weights",
    "dsv3export build examples/tiny-dsv3 -o tiny.engine --force --json",
    "dsv3export build path/to/DeepSeek-V3 -o v3.engine --precision int4 --calibration novel.txt",
    "dsv3export build path/to/DeepSeek-V3 -o slice.engine --precision int4 --layers 3:5",
    "dsv3export build path/to/DeepSeek-V3 -o v3.engine --precision int8 --cache-dtype fp8",
    "dsv3export build path/to/DeepSeek-V3 -o v3.engine --precision int8 --max-memory 2GB --threads 2",
    "dsv3export build examples/tiny-dsv3 -o cuda.engine --precision int4 --provider cuda --compute f16",
    "dsv3export build path/to/DeepSeek-V3 -o v3.engine --precision fp8 --pp 2 --tp 8",
    "dsv3export build examples/tiny-dsv3 -o rtx.engine --backend tensorrt-rtx --precision fp8 --max-slots 4",
)


@click.command("build", cls=Command, examples=EXAMPLES)
@click.argument("checkpoint", type=PathName(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=PathName(path_type=Path), metavar="ENGINE", help="Directory to create."
)
@click.option("--backend", type=click.Choice(BACKENDS), default=BACKENDS[0], show_default=True)
@click.option(
    "--provider",
    type=click.Choice(PROVIDERS),
    default=PROVIDERS[0],
    show_default=True,
    help="What ONNX Runtime shall compute on: kernels, types and layouts differ.",
)
@click.option(
    "--compute",
    type=click.Choice(COMPUTE),
    help="The type of products with integer and fp8 weights on cuda, of all arithmetic on TensorRT [default: bf16,"
    " or the type that all weights have].",
)
@tensorrt_options
@click.option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0], show_default=True)
@click.option("--recipe", type=PathName(path_type=Path), metavar="FILE", help="Precision by layer, from a file.")
@click.option(
    "--calibration",
    type=PathName(path_type=Path),
    metavar="FILE",
    help="Fit int8 and int4 weights to what the model computes on this text (UTF-8).",
)
@click.option(
    "--layers",
    metavar="START:STOP",
    help="Only these decoder layers, a slice as in Python: to measure memory and speed at true shapes, not to write.",
)
@click.option("--no-mtp", is_flag=True, help="Leave the MTP layer, which drafts tokens, out of the engine.")
@click.option(
    "--cache-dtype",
    type=click.Choice(CACHE_FORMATS),
    help="What the latent cache is kept in [default: what the recipe says, or fp32].",
)
@click.option(
    "--max-memory",
    type=byte_size,
    metavar="SIZE",
    help="Bound of the memory, such as 4GB.  [default: 3GB, or the least possible if that is more]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Weights made at once.  [default: physical cores]"
)
@click.option(
    "--pp", type=click.IntRange(min=1), default=1, help="Cut the layers into so many pipeline stages.  [default: 1]"
)
@click.option(
    "--tp", type=click.IntRange(min=1), default=1, help="Cut heads and widths for so many ranks.  [default: 1]"
)
@click.option("--ep", type=click.IntRange(min=1), default=1, help="Cut the routed experts likewise.  [default: 1]")
@click.option("--copy-weights", is_flag=True, help="Copy all weights, so that the engine needs no checkpoint.")
@click.option("--force", is_flag=True, help="Replace an engine that is already there.")
@quiet_option
@json_option("Print the summary as one line of JSON on stdout.")
@verbose_option
def command(
    checkpoint: Path,
    output: Path,
    backend: str,
    provider: Provider,
    compute: Compute | None,
    tensorrt: TensorRTOptions,
    precision: str,
    recipe: Path | None,
    calibration: Path | None,
    layers: str | None,
    no_mtp: bool,
    cache_dtype: str | None,
    max_memory: int | None,
    threads: int | None,
    pp: int,
    tp: int,
    ep: int,
    copy_weights: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT, a Hugging Face folder of safetensors, into an engine.

    The engine appears at ENGINE whole or not at all. Weights that the backend can use as they are stay in the
    checkpoint, which the engine then refers to, unless --copy-weights is given.

    A build that was interrupted or killed leaves ENGINE.partial. The same command goes on from there; another one for
    the same ENGINE starts anew.

    With --pp, --tp and --ep the engine is cut for pp x tp x ep ranks, each of which needs only ENGINE/engine.json,
    ENGINE/tokenizer and its own folder ENGINE/rank-NNN.
    """
    from dsv3export.engine.parallel import Layout

    # torch comes with this import.
    from dsv3export.graphs.build import build_engine

    with progress_on_stderr(quiet) as progress:
        report = build_engine(
            checkpoint,
            output,
            backend=backend,
            precision=precision,
            recipe=recipe,
            force=force,
            copy_weights=copy_weights,
            progress=progress,
            calibration=calibration,
            layers=layers,
            cache_dtype=cache_dtype,
            max_memory=max_memory,
            threads=threads,
            provider=provider,
            compute=compute,
            tensorrt=tensorrt,
            mtp=not no_mtp,
            layout=Layout(pp, tp, ep),
        )
    facts = summary(output, report)
    if as_json:
        print_json(facts)
    elif not quiet:
        click.echo(sentence(facts), err=True)
        if report.manifest.parallel is not None:
            show_ranks(report.manifest.parallel.layout, report.manifest.parallel.ranks)


def summary(output: Path, report: BuildReport) -> dict[str, Any]:
    """What was built, JSON-able: sizes in bytes."""
    manifests = report.ranks or (report.manifest,)
    weights = [entry for manifest in manifests for entry in manifest.weights]
    stored = [entry.nbytes for entry in weights if entry.location == "engine"]
    referenced = [entry.nbytes for entry in weights if entry.location == "checkpoint"]
    return {
        "engine": str(output),
        "backend": report.manifest.backend.name,
        "providers": list(report.manifest.backend.providers),
        "compute": report.manifest.backend.compute,
        "recipe": report.manifest.recipe.to_json(),
        "layers": report.manifest.layers,
        "mtp": any({"mtp", "mtp-segment-000"} & manifest.graphs.keys() for manifest in manifests),
        "parallel": None if report.manifest.parallel is None else ranks_facts(report.manifest.parallel),
        "engine_bytes": report.engine_bytes,
        "weights": {
            "stored": {"tensors": len(stored), "bytes": sum(stored)},
            "referenced": {"tensors": len(referenced), "bytes": sum(referenced)},
        },
        "requantised_from_fp8_to": report.requantised,
        "resumed_bytes": report.resumed_bytes,
        "memory_bytes": report.memory_bytes,
        "seconds": report.seconds,
    }


def sentence(facts: dict[str, Any]) -> str:
    """The summary for people, on one line."""
    stored, referenced = facts["weights"]["stored"], facts["weights"]["referenced"]
    formats = facts["requantised_from_fp8_to"]
    requantised = f"; FP8 weights requantised to {' and '.join(formats)}" if formats else ""
    resumed = f" ({bytes_text(facts['resumed_bytes'])} were there)" if facts["resumed_bytes"] else ""
    return (
        f"built {facts['engine']} in {facts['seconds']:.1f} s: {bytes_text(facts['engine_bytes'])}, "
        f"{counted(stored['tensors'], 'weight')} ({bytes_text(stored['bytes'])}) in the engine{resumed}, "
        f"{referenced['tensors']} ({bytes_text(referenced['bytes'])}) in the checkpoint{requantised}"
    )
