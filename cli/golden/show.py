"""`dsv3export golden show`: what a golden holds, as text that versions can be compared by."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dsv3export.cli.command import Command
from dsv3export.cli.options import PathName, verbose_option

EXAMPLES = ("dsv3export golden show model.golden", "git config diff.golden.textconv 'dsv3export golden show'")


@click.command("show", cls=Command, examples=EXAMPLES)
@click.argument("golden", type=PathName(path_type=Path))
@verbose_option
def command(golden: Path) -> None:
    """Print GOLDEN's document as JSON: all but the arrays, whose names, types and shapes are listed."""
    from dsv3export.compare.json_form import to_json
    from dsv3export.golden import Golden

    opened = Golden.read(golden)
    arrays = {name: f"{dtype} {list(shape)}" for name, (dtype, shape) in opened.document.arrays().items()}
    text = json.dumps(to_json(opened.document) | {"arrays": arrays}, ensure_ascii=False, indent=1, allow_nan=False)
    click.echo(text)
