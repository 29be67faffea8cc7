"""`dsv3export graph`: the traced graph as text, or as a file for Netron."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import PathName, verbose_option
from dsv3export.cli.subject import find_config
from dsv3export.engine.resources import resource_errors
from dsv3export.errors import RequestError, ResourceError

EXAMPLES = (
    "dsv3export graph examples/tiny-dsv3",
    "dsv3export graph deepseek-v3 | less",
    "dsv3export graph examples/tiny-dsv3 --part mtp",
    "dsv3export graph path/to/config.json --onnx model.onnx",
)


@click.command("graph", cls=Command, examples=EXAMPLES)
@click.argument("model", type=PathName())
@click.option(
    "--part",
    type=click.Choice(["trunk", "mtp"]),
    default="trunk",
    show_default=True,
    help="The model, or its multi-token-prediction layer.",
)
@click.option("--onnx", "onnx_file", type=PathName(path_type=Path), metavar="FILE", help="Write ONNX instead.")
@click.option("--portable", is_flag=True, help="With --onnx: write dsv3 ops as functions of standard ONNX ops.")
@verbose_option
def command(model: str, part: Literal["trunk", "mtp"], onnx_file: Path | None, portable: bool) -> None:
    """Print the traced graph of MODEL: a checkpoint, a config.json, an engine, or a preset's name.

    No weight is read: a config is enough, whatever the size of the model.
    """
    config = find_config(model)
    if portable and onnx_file is None:
        raise RequestError("--portable", expected="--onnx FILE with it", got="none")
    if part == "mtp" and not config.num_nextn_predict_layers:
        raise RequestError("--part mtp", expected="a model with an MTP layer", got=f"{model}, which has none")
    # torch comes with this import: not before the config is known to be good.
    from dsv3export.graphs import graph_for, print_graph

    traced = graph_for(config, part)
    if onnx_file is None:
        click.echo(print_graph(traced), nl=False)
        return
    from dsv3export.graphs.onnx_file import portable_onnx, traced_onnx

    write_atomically(onnx_file, portable_onnx(traced) if portable else traced_onnx(traced))
    click.echo(f"wrote {onnx_file}", err=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `path` by a rename: it then has all of `data`, or what it had before.

    Raises:
        ResourceError: The disk is full, the folder is missing or read-only, or `path` is a folder.
    """
    if path.is_dir():
        raise ResourceError(str(path), expected="a file to write", got="a folder")
    with resource_errors(path):
        # Not tempfile: its files are private, this one is meant to be read like any other output.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
