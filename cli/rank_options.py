"""The options of commands that work out an engine for several ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from dsv3export.engine.parallel import Layout
from dsv3export.sizing.step_time import Links

_POSITIVE = click.FloatRange(min=0, min_open=True)
_WIRE_BYTES = {"bf16": 2, "fp32": 4}
_DEFAULT = Links()
_AXES = {
    "pp": "Pipeline stages, each a range of layers.",
    "tp": "Ranks that share heads and widths.",
    "ep": "Ranks that share the routed experts.",
}
_LINKS: dict[str, tuple[str, float, float]] = {
    "node-link-gbs": ("Between devices of a machine, one direction: GB/s.", 1e9, _DEFAULT.node_bandwidth),
    "node-link-us": ("What a message within a machine takes at least: microseconds.", 1e-6, _DEFAULT.node_latency),
    "network-gbs": ("Between machines, for each device: GB/s.", 1e9, _DEFAULT.network_bandwidth),
    "network-us": ("What a message between machines takes at least: microseconds.", 1e-6, _DEFAULT.network_latency),
}


def rank_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as `layout`, a `Layout`, and `links`, a `Links`."""

    @functools.wraps(command)
    def with_values(**values: Any) -> Any:
        layout = Layout(*(values.pop(axis) for axis in _AXES))
        node, node_wait, network, network_wait = (
            values.pop(name.replace("-", "_")) * unit for name, (_, unit, _) in _LINKS.items()
        )
        wire = _WIRE_BYTES[values.pop("wire")]
        links = Links(values.pop("node_devices"), node, network, node_wait, network_wait, wire)
        return command(**values, layout=layout, links=links)

    wrapped: Callable[..., Any] = with_values
    options = [
        *(click.option(f"--{axis}", type=click.IntRange(min=1), default=1, help=text) for axis, text in _AXES.items()),
        click.option("--node-devices", type=click.IntRange(min=1), default=_DEFAULT.node_ranks, show_default=True,
                     help="Devices in one machine."),
        *(click.option(f"--{name}", type=_POSITIVE, default=default / unit, show_default=True, help=text)
          for name, (text, unit, default) in _LINKS.items()),
        click.option("--wire", type=click.Choice(list(_WIRE_BYTES)), default="bf16", show_default=True,
                     help="What ranks hand each other; engines on ONNX Runtime send fp32."),
    ]  # fmt: skip
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
