"""A decode step of DeepSeek-V3 on 8 x H200 and 16 x H100, by arithmetic, beside what other programs were measured at.

    python benchmarks/distributed_simulation.py [--node-link-gbs 450] [--network-gbs 50] [--json]

Nothing is run: bytes, operations and messages of each rank (`dsv3export.sizing.step_time`) over the rates of data
sheets and links. The time is a floor for a layout; the figures beside it were published by others, with layouts of
their own, and say how far programs are from it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsv3export.engine.parallel import Layout
from dsv3export.presets import preset
from dsv3export.recipe import Recipe
from dsv3export.sizing import DEVICES, Workload
from dsv3export.sizing.plan import usable_bytes
from dsv3export.sizing.step_time import Links, step_time


@dataclass(frozen=True)
class Case:
    """A layout on devices, with so many sequences of so many tokens.

    Attributes:
        published: Milliseconds for a token of each sequence, measured by others; None where none was found.
        program: What was measured.
        source: Where it was published.
    """

    device: str
    layout: Layout
    batch: int
    context: int
    published: float | None = None
    program: str = ""
    source: str = ""


_INFERENCE_X = "https://github.com/SemiAnalysisAI/InferenceX/issues/870"
_TENSTORRENT = "https://github.com/tenstorrent/tt-inference-server/issues/356"
_TENSORRT_LLM = "https://nvidia.github.io/TensorRT-LLM/blogs/Best_perf_practice_on_DeepSeek-R1_in_TensorRT-LLM.html"
_VLLM = "https://github.com/deepseek-ai/DeepSeek-R1/issues/507"
_SGLANG = "SGLang 0.5.7, tp 8, FP8, 1k in and 1k out"
# All of DeepSeek-R1, whose shapes are V3's. Contexts are prompt plus half of what is written.
CASES = (
    Case("h200", Layout(tp=8), 1, 2048, 1000 / 158.1, "TensorRT-LLM, tp 8 ep 4, with 3 MTP drafts", _TENSORRT_LLM),
    Case("h200", Layout(tp=8), 8, 1536, 12.8, _SGLANG, _INFERENCE_X),
    Case("h200", Layout(tp=8), 16, 1536, 17.2, _SGLANG, _INFERENCE_X),
    Case("h200", Layout(tp=8), 32, 1536, 25.6, _SGLANG, _INFERENCE_X),
    Case("h200", Layout(tp=8), 32, 625, 1000 * 32 / 1000, "vLLM (February 2025), tp 8, at most 1000 tokens/s", _VLLM),
    Case("h200", Layout(tp=8), 64, 1536, 34.6, _SGLANG, _INFERENCE_X),
    Case("h200", Layout(tp=4, ep=2), 64, 1536),
    Case("h200", Layout(ep=8), 64, 1536),
    Case("h200", Layout(tp=8), 256, 2048),
    Case(
        "h200", Layout(tp=8), 1024, 2048, 1000 * 1024 / 11489.3,
        "TensorRT-LLM, tp 8 ep 8, each GPU the attention of its own sequences", _TENSORRT_LLM,
    ),
    Case("h100", Layout(tp=16), 1, 192, 23.1, "SGLang, 2 x 8 H100 over InfiniBand", _TENSTORRENT),
    Case("h100", Layout(pp=2, tp=8), 1, 192),
    Case("h100", Layout(tp=16), 64, 1536),
    Case("h100", Layout(pp=2, tp=8), 64, 1536),
)  # fmt: skip


@dataclass(frozen=True)
class Simulated:
    """What comes out of a case; times in milliseconds."""

    case: Case
    fits: bool
    working: float
    messages: float
    step: float
    tokens_per_second: float


def simulate(cases: tuple[Case, ...], links: Links) -> Iterator[Simulated]:
    """All cases."""
    config, recipe = preset("deepseek_v3"), Recipe.for_precision("fp8")
    for case in cases:
        device = DEVICES[case.device]
        workload = Workload(case.batch, case.context, case.context, "bf16")
        step = step_time(config, recipe, case.layout, device, workload, links, usable_bytes(device))
        slowest = max(step.stages, key=lambda stage: stage.seconds)
        yield Simulated(
            case,
            step.fits,
            1e3 * max(slowest.reading, slowest.computing),
            1e3 * (slowest.collectives + slowest.sending),
            1e3 * step.seconds,
            step.tokens_per_second,
        )


def table(results: list[Simulated]) -> str:
    """As Markdown."""
    lines = [
        "| devices | layout | sequences x tokens | memory, ms | messages, ms | step, ms | tokens/s | others, ms | by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        case = each.case
        measured = "" if case.published is None else f"{case.published:.1f} ({case.published / each.step:.1f} x)"
        source = f"[{case.program}]({case.source})" if case.source else ""
        fits = "" if each.fits else ", does not fit"
        lines.append(
            f"| {case.layout.world} x {case.device.upper()} | {case.layout.describe()}{fits} | "
            f"{case.batch:,} x {case.context:,} | {each.working:.2f} | {each.messages:.2f} | "
            f"{each.step:.2f} | {each.tokens_per_second:,.0f} | {measured} | {source} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Links()
    parser.add_argument("--node-link-gbs", type=float, default=defaults.node_bandwidth / 1e9)
    parser.add_argument("--node-link-us", type=float, default=defaults.node_latency * 1e6)
    parser.add_argument("--network-gbs", type=float, default=defaults.network_bandwidth / 1e9)
    parser.add_argument("--network-us", type=float, default=defaults.network_latency * 1e6)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    links = Links(
        defaults.node_ranks,
        options.node_link_gbs * 1e9,
        options.network_gbs * 1e9,
        options.node_link_us * 1e-6,
        options.network_us * 1e-6,
    )
    results = list(simulate(CASES, links))
    if options.json:
        print(json.dumps([asdict(each) for each in results]))
    else:
        print(table(results))


if __name__ == "__main__":
    main()
