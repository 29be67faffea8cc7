"""`dsv3export plan`: what a model takes, what fits, and how fast it could be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.capabilities import PRECISIONS
from dsv3export.cli.command import Command
from dsv3export.cli.options import PathName, json_option, verbose_option
from dsv3export.cli.rank_options import rank_options
from dsv3export.cli.ranks import show_step, step_facts
from dsv3export.cli.subject import find_config
from dsv3export.cli.tables import counted, print_facts, print_json, print_table
from dsv3export.cli.units import decimal_bytes, scaled, time_text
from dsv3export.errors import RequestError
from dsv3export.recipe import CACHE_FORMATS, Recipe
from dsv3export.sizing import DEVICES, Device, Workload, make_plan
from dsv3export.sizing.devices import device as make_device
from dsv3export.sizing.parallel import check_layout
from dsv3export.sizing.plan import usable_bytes
from dsv3export.sizing.step_time import step_time
from dsv3export.sizing.term import total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dsv3export.config import ModelConfig
    from dsv3export.engine.parallel import Layout
    from dsv3export.sizing import Floor, Plan, Term
    from dsv3export.sizing.step_time import Links

EXAMPLES = (
    "dsv3export plan deepseek-v3 --device h200 --batch 128 --context 4096",
    "dsv3export plan deepseek-v3 --precision int4 --device rtx-5090 --cache-dtype fp8",
    "dsv3export plan deepseek-v2-lite --precision int4 --device rtx-4090 --devices 1",
    "dsv3export plan deepseek-v3 --device h200 --tp 8 --batch 64",
    "dsv3export plan deepseek-v3 --device h100 --pp 2 --tp 8 --batch 32 --context 8192",
    "dsv3export plan path/to/checkpoint --memory-gb 96 --bandwidth-gbs 460 --tflops 3 --json",
)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("plan", cls=Command, examples=EXAMPLES)
@click.argument("model", type=PathName())
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of the engine; default: fp8 or bf16, as published.")
@click.option("--recipe", type=PathName(path_type=Path), metavar="FILE", help="Precision by layer, from a file.")
@click.option("--cache-dtype", type=click.Choice(CACHE_FORMATS), default="bf16", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences decoded at once.")
@click.option("--context", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of each of them.")
@click.option("--prompt", type=click.IntRange(min=1), help="Tokens of each prompt; default: a quarter of the context.")
@click.option("--device", "device_name", type=click.Choice(list(DEVICES)), help="A GPU that is known.  [default: h100]")
@click.option("--memory-gb", type=_POSITIVE, help="Of another device: memory in GB (10^9 bytes).")
@click.option("--bandwidth-gbs", type=_POSITIVE, help="Of another device: memory bandwidth in GB/s.")
@click.option("--tflops", type=_POSITIVE, help="Of another device: dense matrix products, TFLOP/s.")
@click.option("--devices", type=click.IntRange(min=1), help="How many; default: as many as are needed.")
@rank_options
@json_option("Print one line of JSON.")
@verbose_option
def command(
    model: str,
    precision: str | None,
    recipe: Path | None,
    cache_dtype: Any,
    batch: int,
    context: int,
    prompt: int | None,
    device_name: str | None,
    memory_gb: float | None,
    bandwidth_gbs: float | None,
    tflops: float | None,
    devices: int | None,
    layout: Layout,
    links: Links,
    as_json: bool,
) -> None:
    """Say what MODEL takes in memory, what fits, how many devices it needs, and the floors of its speed.

    MODEL is a checkpoint, a config.json, an engine, or a preset's name; no weight is read. A floor is the least time
    that the bytes and operations of the model's formulas take on such devices, evenly split and with nothing else to
    do: no program is faster, and good ones come near. All of the arithmetic is shown.

    With --pp, --tp and --ep also what each rank of an engine cut that way holds and sends, and the least time of a
    decode step with the messages between the ranks. What they do not divide is refused.
    """
    config = find_config(model)
    chosen_device = _device(device_name, memory_gb, bandwidth_gbs, tflops)
    workload = Workload(batch, context, max(1, context // 4) if prompt is None else prompt, cache_dtype)
    chosen = _recipe(config, precision, recipe)
    step = None
    if layout.world > 1:
        if devices not in (None, layout.world):
            raise RequestError("--devices", expected=f"{layout.world}, of {layout.describe()}", got=str(devices))
        check_layout(config, chosen, layout)
        devices, usable = layout.world, usable_bytes(chosen_device)
        mtp = config.num_nextn_predict_layers > 0
        step = step_time(config, chosen, layout, chosen_device, workload, links, usable, mtp)
    plan = make_plan(config, chosen, chosen_device, workload, devices)
    if as_json:
        print_json({"model": model, **asdict(plan), "ranks": None if step is None else step_facts(step)})
        return
    show(model, config, plan)
    if step is not None:
        show_step(step, links, plan.usable)


def _recipe(config: ModelConfig, precision: str | None, recipe: Path | None) -> Recipe:
    if recipe is not None:
        return Recipe.from_toml(recipe)
    return Recipe.for_precision(precision or ("fp8" if config.quantization else "bf16"))


def _device(name: str | None, memory: float | None, bandwidth: float | None, tflops: float | None) -> Device:
    given = {"--memory-gb": memory, "--bandwidth-gbs": bandwidth, "--tflops": tflops}
    if all(value is None for value in given.values()):
        return DEVICES[name or "h100"]
    if name is not None:
        extra = next(option for option, value in given.items() if value is not None)
        raise RequestError(f"--device {name}", expected=f"it without {extra}", got="both", fix="Leave one out.")
    if memory is None or bandwidth is None or tflops is None:
        missing = ", ".join(option for option, value in given.items() if value is None)
        raise RequestError("another device", expected="--memory-gb, --bandwidth-gbs and --tflops", got=f"no {missing}")
    return make_device("custom", memory, bandwidth, tflops)


def show(model: str, config: ModelConfig, plan: Plan) -> None:
    """Prints a plan for people."""
    device, work = plan.device, plan.workload
    rates = f"{plan.device.flops[plan.matrix_type] / 1e12:,.0f} TFLOP/s in {plan.matrix_type}"
    print_facts(
        f"{model} on {plan.devices:,} x {device.name}",
        [
            ("device", f"{decimal_bytes(device.memory)}, {decimal_bytes(device.bandwidth)}/s, {rates}"),
            ("workload", f"{counted(work.batch, 'sequence')} of {work.context:,} tokens, prompts of {work.prompt:,}"),
        ],
    )
    terms = [*plan.weights, plan.cache, *plan.activations]
    _print_terms("Memory", terms, "bytes", decimal_bytes)
    print_facts("Fit", _fit(config, plan))
    _print_floor("One decode step", plan, plan.decode)
    _print_floor("Prefill of all prompts", plan, plan.prefill)


def _fit(config: ModelConfig, plan: Plan) -> list[tuple[str, str]]:
    work, everywhere = plan.workload, plan.needed_cache_everywhere
    count = "none suffice" if everywhere is None else f"{everywhere:,}"
    bound = " (the model's bound)" if plan.longest_context == config.max_position_embeddings else ""
    return [
        ("usable per device", f"{decimal_bytes(plan.usable)}, 10 % kept for driver, kernels and workspaces"),
        ("devices needed", f"{plan.needed:,} with weights and sequences split evenly"),
        ("", f"{count} with every sequence's cache on each device (tensor parallel)"),
        (f"on {plan.devices:,}", f"at most {counted(plan.largest_batch, 'sequence')} of {work.context:,} tokens"),
        ("", f"or {counted(work.batch, 'sequence')} of {plan.longest_context:,} tokens{bound}"),
    ]


def _print_floor(title: str, plan: Plan, floor: Floor) -> None:
    _print_terms(f"{title}: bytes read", floor.bytes, "bytes", decimal_bytes)
    _print_terms(f"{title}: operations", floor.flops, "FLOP", _flops)
    count, bandwidth, rate = plan.devices, plan.device.bandwidth, plan.device.flops[plan.matrix_type]
    read, computed = total(floor.bytes), total(floor.flops)
    reading, computing = time_text(read / (count * bandwidth)), time_text(computed / (count * rate))
    print_facts(
        f"{title}: floor",
        [
            ("reading", f"{decimal_bytes(read)} / ({count} x {decimal_bytes(bandwidth)}/s) = {reading}"),
            ("computing", f"{_flops(computed)} / ({count} x {_flops(rate)}/s) = {computing}"),
            ("at best", f"{floor.tokens_per_second:,.1f} tokens/s, {time_text(floor.seconds)}, bound by {floor.limit}"),
        ],
    )


def _print_terms(title: str, terms: Sequence[Term], unit: str, text: Any) -> None:
    rows = [(term.name, text(term.value), term.formula) for term in terms]
    print_table(title, ("part", unit, "from"), [*rows, ("all", text(total(terms)), "")], right=(unit,))


def _flops(count: float) -> str:
    return scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))
