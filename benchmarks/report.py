"""A result as tables for a terminal, or for a page.

As a command it prints a file that another one wrote:

    python -m benchmarks.report benchmarks/results/quantised-0.5b.json [--markdown]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 160  # of a table in a file; a terminal has its own


def print_report(result: Mapping[str, Any], table_box: box.Box = box.HEAVY_HEAD) -> None:
    """Medians with (lowest-highest), and ratios ours / theirs: of CPU time with one thread, of wall time with more."""
    console = table_console()
    machine, model = result["machine"], result["model"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average'][0]:.1f} at the start")
    console.print(
        f"model {model['preset']}: {model['parameters'] / 1e6:.0f} M parameters, {model['active'] / 1e6:.0f} M active"
    )
    for name, builds in result["build"].items():
        if builds:
            console.print(_build_line(name, builds))
    for threads, found in result["threads"].items():
        clock = "cpu" if threads == "1" else "wall"
        console.print(f"\nthreads: {threads}; speeds by {'CPU' if clock == 'cpu' else 'wall'} time")
        for table in (_speeds(result, found, clock), _ratios(found, clock)):
            table.box = table_box
            console.print(table)
        _print_limits(console, found)
        for name, one in found["agreement"].items():
            console.print(f"{'same model' if one['agree'] else 'ANOTHER MODEL'}: {name} ({_facts(one)})")
        disturbed = [run["others"] for runs in found["runs"].values() for run in runs if run["disturbed"]]
        if disturbed:
            console.print(f"disturbed by other programs: {len(disturbed)} runs, by up to {max(disturbed):.1f} cores")


def table_console() -> Console:
    """stdout, wide enough for a table where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)


def _build_line(name: str, builds: list[Mapping[str, Any]]) -> str:
    wall, peak = (
        median(values) for values in ([b["total"]["wall"] for b in builds], [b["peak_rss_bytes"] for b in builds])
    )
    return (
        f"build of {name}: {wall:.1f} s, peak memory {peak / 1e9:.2f} GB, "
        f"engine {builds[0]['engine_bytes'] / 1e9:.2f} GB"
    )


def _speed_columns(found: Mapping[str, Any], clock: str) -> dict[str, str]:
    """Titles by figure: each length of prefill, then decode."""
    figures = next(iter(found["subjects"].values()))
    ending = f"_tokens_per_s_{clock}"
    return {name: name.removesuffix(ending).replace("_", " ") for name in figures if name.endswith(ending)}


def _speeds(result: Mapping[str, Any], found: Mapping[str, Any], clock: str) -> Table:
    columns = _speed_columns(found, clock)
    table = Table("tokens/s", *columns.values(), "of bandwidth", "ready, s", "weights, GB", "resident", "private")
    for name, figures in found["subjects"].items():
        table.add_row(
            name,
            *(_cell(figures[column]) for column in columns),
            f"{found['shares_of_limits'][name]['decode_of_read_bandwidth']:.0%}",
            _cell(figures["ready_s_wall"]),
            f"{result['weights'][name]['total'] / 1e9:.2f}",
            f"{figures['resident_gb']['median']:.2f}",
            f"{figures['anonymous_rss_gb']['median']:.2f}",
        )
    return table


def _ratios(found: Mapping[str, Any], clock: str) -> Table:
    columns = _speed_columns(found, clock)
    table = Table("ours / theirs", *columns.values())
    for ours, others in found["ratios"].items():
        for theirs, figures in others.items():
            table.add_row(f"{ours} / {theirs}", *(_cell(figures[column]) for column in columns))
    return table


def _cell(spread: Mapping[str, float]) -> str:
    digits = 2 if spread["high"] < 20 else 1 if spread["high"] < 200 else 0
    middle, low, high = (f"{spread[part]:.{digits}f}" for part in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low}-{high})"


def _print_limits(console: Console, found: Mapping[str, Any]) -> None:
    limits = found["limits"]
    console.print(
        f"limits: reads {limits['read_bytes_per_second'] / 1e9:.1f} GB/s, multiplies float32 at "
        f"{limits['float32_flop_per_second'] / 1e9:.0f} GFLOP/s"
    )


def _facts(agreement: Mapping[str, Any]) -> str:
    if "tokens" in agreement:
        return (
            f"logits within {agreement['max_abs_logit_difference']:.1e}, "
            f"{agreement['same_tokens']}/{agreement['tokens']} tokens the same"
        )
    return (
        f"logits {agreement['relative_logit_error']:.3f} from float32, likeliest token the same at "
        f"{agreement['same_top_token']:.0%} of positions"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("result", type=Path, help="a file that --json wrote")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    print_report(result, box.MARKDOWN if options.markdown else box.HEAVY_HEAD)


if __name__ == "__main__":
    main()
