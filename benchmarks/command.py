"""What the commands that compare speed share: their options, the folder of the model, the result's frame."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.comparison import Settings
from benchmarks.machine import machine_facts
from benchmarks.models import Models
from benchmarks.presets import PRESETS
from dsv3export.model_size import count_parameters


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated, as the options have them."""
    return tuple(int(part) for part in text.split(","))


def speed_options(description: str | None, prefill_tokens: str) -> argparse.ArgumentParser:
    """The options of every comparison of speed."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="0.5b")
    parser.add_argument("--threads", type=numbers, default=(1, 2))
    parser.add_argument("--prefill-tokens", type=numbers, default=numbers(prefill_tokens), help="lengths of prompts")
    parser.add_argument("--new-tokens", type=int, default=32, help="decode steps, after the first length of prompt")
    parser.add_argument("--passes", type=int, default=3, help="measured passes in a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each subject, taking turns")
    parser.add_argument("--tries", type=int, default=2, help="runs of a process that other programs disturb, at most")
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait for other programs, each time")
    parser.add_argument("--models", type=Path, help="keep the model in this folder and use what is there")
    parser.add_argument("--reuse-engines", action="store_true", help="use also engines that are in --models")
    parser.add_argument("--work-dir", type=Path, help="where temporary files are made, for as long as this runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser


def settings(options: argparse.Namespace, repeats_of: dict[str, int] | None = None) -> Settings:
    return Settings(
        options.prefill_tokens, options.new_tokens, options.passes, options.repeats, repeats_of or {},
        options.tries, options.patience,
    )  # fmt: skip


@contextmanager
def workspace(options: argparse.Namespace) -> Iterator[tuple[Path, Models]]:
    """(a folder for temporary files, the models); gigabytes of temporary files go also when this is terminated."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with TemporaryDirectory(prefix="dsv3export-benchmark-", dir=options.work_dir) as name:
        folder = options.models or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        yield Path(name), Models(folder, options.preset, options.reuse_engines)


def frame(benchmark: str, options: argparse.Namespace, models: Models) -> dict[str, Any]:
    """What a result says about how it came about; JSON-able. Call it before anything is measured."""
    size = count_parameters(models.config)
    names = ("prefill_tokens", "new_tokens", "passes", "repeats")
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", f"benchmarks/{benchmark}.py", *without_paths(sys.argv[1:])]),
        "machine": machine_facts(),
        "model": {"preset": options.preset, "parameters": size.total, "active": size.active},
        "settings": {name: getattr(options, name) for name in names},
    }


def finish(result: dict[str, Any], options: argparse.Namespace) -> int:
    """Writes the file that was asked for; the exit code is 1 if a subject computed something else."""
    result["machine"]["load_average_after"] = machine_facts()["load_average"]
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    compared = (one for found in result["threads"].values() for one in found["agreement"].values())
    return 0 if all(one["agree"] for one in compared) else 1


def without_paths(arguments: list[str]) -> list[str]:
    """Folders are this machine's affair."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not skip and name not in ("--models", "--work-dir"):
            kept.append(argument)
        skip = name in ("--models", "--work-dir") and not equals
    return kept
