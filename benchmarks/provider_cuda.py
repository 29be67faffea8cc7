"""Right and fast on a GPU? Engines for ONNX Runtime's CUDA provider, built, compared with the executor, and timed.

    pip install 'dsv3export[gpu,build]' 'onnxruntime-gpu[cuda,cudnn]'
    python benchmarks/provider_cuda.py [--preset 0.5b] [--prompt-tokens 128,512] [--new-tokens 64] [--json FILE]

Needs a GPU of compute capability 8.0 or newer and no other package than those. Exit code 1 if an engine does not
predict what its executor does. ``--provider cpu`` tries the script itself where there is no GPU, with those engines
that the CPU provider has kernels for.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import machine_facts
from benchmarks.presets import PRESETS
from benchmarks.provider_cases import CASES, ProviderCase
from benchmarks.synthetic import write_checkpoint
from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.cli.machine import read_gpus
from dsv3export.engine.reader import EngineFiles
from dsv3export.evaluate import compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "data" / "tiny-dsv3-bf16"
GOLDENS = ROOT / "tests" / "data" / "goldens"


def built(checkpoint: Path, name: str, folder: Path) -> Path:
    """The engine of a case, made anew."""
    case, out = CASES[name], folder / f"{checkpoint.name}-{name.replace(' ', '-')}.engine"
    recipe = folder / "recipe.toml"
    recipe.write_text(case.recipe)
    build_engine(checkpoint, out, recipe=recipe, provider="cuda", compute=case.compute)
    return out


def check(case: ProviderCase, engine: Engine, path: Path, tokens: int) -> dict[str, Any]:
    """The trained model on held-out text against the executor at the engine's recipe; greedy goldens in float32."""
    recipe = EngineFiles.open(path).manifest.recipe
    executor = Executor(Checkpoint.open(TINY), recipe=recipe)
    ids = json.loads((GOLDENS / "heldout_token_ids.json").read_text())
    found = compare(engine, executor, ids[:tokens])
    right = found.kl_mean <= case.kl and found.top1_agreement >= case.top1
    facts = {"kl": found.kl_mean, "top1": found.top1_agreement, "perplexity_ratio": found.perplexity_ratio}
    if recipe.precision == "fp32":
        prompts = json.loads((GOLDENS / "bf16" / "goldens.json").read_text())["prompts"]
        results = engine.generate([prompt["ids"] for prompt in prompts], 48, ignore_eos=True)
        same = [result.token_ids == prompt["greedy_ids"] for result, prompt in zip(results, prompts, strict=True)]
        facts["golden_continuations"] = sum(same)
        right = right and all(same)
    return {**facts, "right": right}


def speed(engine: Engine, vocab_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second: prefill of each length, and greedy decoding behind it; medians, after one pass to warm up."""
    facts = {}
    for length in options.prompt_tokens:
        prompt = np.random.default_rng(0).integers(3, vocab_size, length).tolist()
        passes = [_pass(engine, prompt, options.new_tokens) for _ in range(1 + options.passes)][1:]
        prefill, decode = (median(values) for values in zip(*passes, strict=True))
        facts[str(length)] = {"prefill": length / prefill, "decode": options.new_tokens / decode}
    return facts


def _pass(engine: Engine, prompt: Sequence[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and for `new_tokens` more."""
    started = time.perf_counter()
    stream = engine.stream(prompt, 1 + new_tokens, ignore_eos=True)
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    return first - started, time.perf_counter() - first


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole result, JSON-able."""
    config = PRESETS[options.preset]
    synthetic = folder / options.preset
    write_checkpoint(synthetic, config)
    cases: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        tiny = built(TINY, name, folder)
        if options.provider not in EngineFiles.open(tiny).manifest.backend.providers:
            continue
        engine = Engine.load(tiny, provider=options.provider)
        cases[name] = check(case, engine, tiny, options.tokens)
        large = Engine.load(built(synthetic, name, folder), provider=options.provider)
        cases[name]["tokens_per_s"] = speed(large, config["vocab_size"], options)
        print_case(name, cases[name])
    return {
        "benchmark": "provider_cuda",
        "command": shlex.join(["python", "benchmarks/provider_cuda.py", *sys.argv[1:]]),
        "machine": {**machine_facts(), "gpus": [vars(gpu) for gpu in read_gpus()]},
        "provider": options.provider,
        "preset": options.preset,
        "cases": cases,
    }


def print_case(name: str, facts: Mapping[str, Any]) -> None:
    rates = "; ".join(
        f"{length} tokens: prefill {rate['prefill']:.0f}/s, decode {rate['decode']:.1f}/s"
        for length, rate in facts["tokens_per_s"].items()
    )
    verdict = "right" if facts["right"] else "WRONG"
    print(f"{name:13} {verdict}: KL {facts['kl']:.1e}, same top token {facts['top1']:.1%}; {rates}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="0.5b", help="the model that is timed")
    parser.add_argument(
        "--prompt-tokens", type=lambda text: [int(part) for part in text.split(",")], default=[128, 512]
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1020, help="tokens of held-out text that are compared")
    parser.add_argument("--work-dir", type=Path, help="where models and engines are made, for as long as this runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    with TemporaryDirectory(prefix="dsv3export-cuda-", dir=options.work_dir) as folder:
        result = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(facts["right"] for facts in result["cases"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
