"""What many requests share: batches, beginnings of prompts, drafts of the MTP layer, and a server under load.

    python benchmarks/serving.py [--preset 0.5b] [--seconds 60] [--models FOLDER] [--json FILE]

Bounds: eight slots decode at least 3 times as many tokens per second as one, with int8 weights; the second request with
a shared beginning of 512 tokens has its first token at least 5 times sooner; under load every answer is that of a
client alone. Exit code 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.bounds import conclude
from benchmarks.clients import press
from benchmarks.command import without_paths
from benchmarks.machine import machine_facts
from benchmarks.models import Models
from benchmarks.presets import PRESETS
from dsv3export.bench.measure import Case, measure
from dsv3export.runtime.engine import Engine

_ROOT = Path(__file__).resolve().parents[1]
_MIN_BATCH_RATIO, _MIN_PREFIX_RATIO = 3.0, 5.0
_SHARED, _OWN = 512, 16
_PROMPTS = ("And it came to pass in those days, that", "In the beginning", "And the LORD spake unto Moses, saying,",
            "Now these are the names of the children of Israel,")  # fmt: skip
_LENGTHS = (6, 20, 48)
_SLOTS, _CLIENTS, _LEAVING = 32, 200, 0.2


def batches(path: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Decode rates of one slot and of eight."""
    engine = Engine.load(path, threads)
    rates = {
        slots: measure(engine, Case(slots, 32, 33), repeats, lambda amount: None).decode.median for slots in (1, 8)
    }
    return {"decode_tokens_per_second": rates, "ratio": rates[8] / rates[1]}


def prefixes(path: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first token of two requests that begin alike, and of a pair that does not."""
    random = np.random.default_rng(2)
    engine = Engine.load(path, threads, prefix_cache=256 << 20)
    vocab = engine.session.vocab_size

    def seconds(prompt: list[int]) -> float:
        started = perf_counter()
        next(iter(engine.stream(prompt, 2, ignore_eos=True)))
        return perf_counter() - started

    seconds(random.integers(0, vocab, _SHARED + _OWN).tolist())  # to warm up
    first, second = [], []
    for _ in range(repeats):
        shared = random.integers(0, vocab, _SHARED).tolist()
        first.append(seconds(shared + random.integers(0, vocab, _OWN).tolist()))
        second.append(seconds(shared + random.integers(0, vocab, _OWN).tolist()))
    ratio = statistics.median(first) / statistics.median(second)
    return {"first_seconds": first, "second_seconds": second, "ratio": ratio}


def drafts(path: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Decode rates of the trained model with no draft a step, one and two, and how many were right."""
    found: dict[str, Any] = {}
    for count in (0, 1, 2):
        engine = Engine.load(path, threads, speculate=count)
        rates, texts = [], []
        for _ in range(repeats + 1):
            started, tokens = perf_counter(), 0
            for prompt in _PROMPTS:
                result = engine.generate(prompt, 128, ignore_eos=True)
                tokens += len(result.token_ids)
                texts.append(result.text)
            rates.append(tokens / (perf_counter() - started))
        found[str(count)] = {
            "tokens_per_second": statistics.median(rates[1:]),
            "acceptance": engine.speculation.rate,
            "text_as_without": texts == found["0"]["texts"] if count else True,
            "texts": texts,
        }
    for each in found.values():
        del each["texts"]
    plain = found["0"]["tokens_per_second"]
    return found | {"speed_up": {count: found[count]["tokens_per_second"] / plain for count in ("1", "2")}}


def load(path: Path, threads: int, seconds: float) -> dict[str, Any]:
    """A server and 200 streaming clients, a fifth of whose requests are left in the middle; then SIGTERM."""
    engine = Engine.load(path, threads=1)
    expected = {
        prompt: {new: engine.generate(prompt, new, ignore_eos=True).text for new in _LENGTHS} for prompt in _PROMPTS
    }
    command = [sys.executable, "-m", "dsv3export", "serve", str(path), "--port", "0", "--slots", str(_SLOTS),
               "--context", "512", "--threads", str(threads), "--quiet"]  # fmt: skip
    with subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = re.search(r"http://\S+?(?=,)", server.stderr.readline())
        assert address is not None
        url = address[0]
        asyncio.run(press(url, expected, _CLIENTS, seconds / 10, _LEAVING, seed=1))
        before = _resident_bytes(server.pid)
        found = asyncio.run(press(url, expected, _CLIENTS, seconds, _LEAVING))
        grown = _resident_bytes(server.pid) - before
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    gaps = np.sort(found.gaps)
    return {
        "clients": _CLIENTS, "slots": _SLOTS, "seconds": seconds, "finished": found.finished, "left": found.left,
        "wrong": found.wrong[:5], "wrong_count": len(found.wrong), "tokens_per_second": len(gaps) / seconds,
        "between_tokens_ms": {share: float(np.quantile(gaps, share)) * 1e3 for share in (0.5, 0.99, 1.0)},
        "memory_grown_bytes": grown, "exit_code": code,
    }  # fmt: skip


def _resident_bytes(process: int) -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def broken_bounds(result: dict[str, Any]) -> list[str]:
    """Which bounds do not hold."""
    broken = []
    if result["batches"]["ratio"] < _MIN_BATCH_RATIO:
        broken.append(f"eight slots: {result['batches']['ratio']:.2f} times one, at least {_MIN_BATCH_RATIO:g}")
    if result["prefixes"]["ratio"] < _MIN_PREFIX_RATIO:
        broken.append(f"shared beginning: {result['prefixes']['ratio']:.2f}, at least {_MIN_PREFIX_RATIO:g}")
    if result["load"]["wrong_count"] or result["load"]["exit_code"]:
        broken.append(f"under load: {result['load']['wrong_count']} wrong, exit code {result['load']['exit_code']}")
    if not all(result["drafts"][count]["text_as_without"] for count in ("1", "2")):
        broken.append("drafts changed the text")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="0.5b", help="the model of batches and prefixes")
    parser.add_argument("--seconds", type=float, default=60, help="of load")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, help="keep the model in this folder and use what is there")
    parser.add_argument("--reuse-engines", action="store_true", help="use also engines that are in --models")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "serving",
        "command": " ".join(["python", "benchmarks/serving.py", *without_paths(sys.argv[1:])]),
        "machine": machine_facts(),
    }
    with TemporaryDirectory(prefix="dsv3export-serving-") as name:
        models = Models(options.models or Path(name), options.preset, options.reuse_engines)
        wide, _ = models.engine("int8", 1)
        trained = Path(name) / "trained.engine"
        build = [sys.executable, "-m", "dsv3export", "build", str(_ROOT / "examples" / "tiny-dsv3"), "-o", str(trained)]
        subprocess.run([*build, "--precision", "int8", "--quiet"], cwd=_ROOT, check=True)
        for part, action in (
            ("batches", lambda: batches(wide, options.threads, options.repeats)),
            ("prefixes", lambda: prefixes(wide, options.threads, options.repeats)),
            ("drafts", lambda: drafts(trained, options.threads, options.repeats)),
            ("load", lambda: load(trained, options.threads, options.seconds)),
        ):
            result[part] = action()
            print(json.dumps({part: result[part]}), file=sys.stderr, flush=True)
    return conclude(result, options.json, broken_bounds(result))


if __name__ == "__main__":
    sys.exit(main())
