"""`dsv3export report`: what `diff --json` wrote, as a page, a picture or a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3export.cli.command import Command
from dsv3export.cli.graph import write_atomically
from dsv3export.cli.options import Function, PathName, quiet_option, verbose_option

if TYPE_CHECKING:
    from dsv3export.compare.layers import LayerDiff

EXAMPLES = (
    "dsv3export report diff.json --html diff.html",
    "dsv3export report diff.json --plot diff.png --quiet",
    "dsv3export report diff.json --all",
)
_PLOTS = (".png", ".svg")


class PlotPath(PathName):
    """A file that is to be a picture: its ending says which kind."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(super().convert(value, param, ctx))
        if path.suffix.lower() not in _PLOTS:
            self.fail(f"expected a name that ends in {' or '.join(_PLOTS)}, got {path.name!r}", param, ctx)
        return path


def report_options(function: Function) -> Function:
    """`--html` and `--plot`, passed to the command as `html_file` and `plot_file`."""
    html = click.option("--html", "html_file", type=PathName(path_type=Path), metavar="FILE",
                        help="Write a self-contained page to FILE.")  # fmt: skip
    plot = click.option("--plot", "plot_file", type=PlotPath(), metavar="FILE",
                        help="Draw FILE, .png or .svg (needs matplotlib, the extra [plot]).")  # fmt: skip
    return html(plot(function))


@click.command("report", cls=Command, examples=EXAMPLES)
@click.argument("diff_file", metavar="DIFF.json", type=PathName(path_type=Path))
@report_options
@click.option("--all", "show_all", is_flag=True, help="Print every value, not only each layer's result.")
@quiet_option
@verbose_option
def command(diff_file: Path, html_file: Path | None, plot_file: Path | None, show_all: bool, quiet: bool) -> None:
    """Show DIFF.json, which `dsv3export diff --json` wrote, elsewhere or earlier.

    The page and the picture are those that `diff` itself makes. The exit code says whether they could be made, not what
    the comparison came to.
    """
    from dsv3export.cli.diff_summary import show
    from dsv3export.compare.diff_file import read_diff

    diff = read_diff(diff_file)
    write_reports(diff, html_file, plot_file)
    if not quiet:
        show(diff, show_all)


def write_reports(diff: LayerDiff, html_file: Path | None, plot_file: Path | None) -> None:
    """The page and the picture, where they are asked for. Raises UserError."""
    if plot_file is not None:
        from dsv3export.report.diff_plot import diff_plot

        write_atomically(plot_file, diff_plot(diff, "svg" if plot_file.suffix.lower() == ".svg" else "png"))
    if html_file is not None:
        from dsv3export.report.diff_html import diff_page

        write_atomically(html_file, diff_page(diff))
