"""Measures the tolerance profiles that the program ships: dsv3export/golden/profiles.json.

    python benchmarks/golden_profiles.py [--only NAME] [--json FILE]

For each arithmetic, engines of both trained checkpoints are held against two goldens: the executor's in float32, and
the executor's in that arithmetic (profiles `same-...`). They run with one and two threads, alone and in batches,
prompts whole and in chunks. A bound is the largest figure of all runs times 4, of a divergence times 16. `--only`
measures one arithmetic, and leaves the others' profiles as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dsv3export.cli.golden.models import encode, open_model
from dsv3export.compare.json_form import to_json
from dsv3export.golden import Golden, GoldenModel, Settings, record_golden
from dsv3export.golden.calibrate import Noise, measure_noise
from dsv3export.golden.document import Profile
from dsv3export.golden.profile import shipped
from dsv3export.graphs.build import build_engine
from dsv3export.recipe import Recipe
from dsv3export.runtime.prompt_file import FilePrompt

_ROOT = Path(__file__).resolve().parents[1]
_CHECKPOINTS = {
    "bf16": _ROOT / "tests" / "data" / "tiny-dsv3-bf16",
    "fp8": _ROOT / "examples" / "tiny-dsv3",
}
_TEXT = _ROOT / "tests" / "data" / "goldens" / "heldout.txt"
_TEXT_TOKENS = 1020
# Profile -> precision and cache format of the engine.
ARITHMETICS = {
    "fp32": ("fp32", "fp32"),
    "bf16": ("bf16", "fp32"),
    "fp8": ("fp8", "fp32"),
    "int8": ("int8", "fp32"),
    "int4": ("int4", "fp32"),
    "cache-bf16": ("fp32", "bf16"),
    "cache-f16": ("fp32", "f16"),
    "cache-fp8": ("fp32", "fp8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=_ROOT / "dsv3export" / "golden" / "profiles.json")
    parser.add_argument("--only", choices=tuple(ARITHMETICS))
    arguments = parser.parse_args()
    known = {profile.name: profile for profile in shipped()} if arguments.only else {}
    for profile in measured_profiles((arguments.only,) if arguments.only else tuple(ARITHMETICS)):
        largest = ", ".join(f"{bound.metric} {bound.largest:.2g}" for bound in profile.bounds)
        print(f"{profile.name}: {largest}", flush=True)
        known[profile.name] = profile
    lines = [json.dumps(to_json(profile), allow_nan=False) for profile in known.values()]
    arguments.json.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def measured_profiles(names: Sequence[str]) -> Iterator[Profile]:
    """Two for each arithmetic."""
    with TemporaryDirectory() as folder:
        truths = {variant: _record(variant, "fp32", "fp32") for variant in _CHECKPOINTS}
        for name in names:
            precision, cache = ARITHMETICS[name]
            against, same = [], []
            for variant, checkpoint in _CHECKPOINTS.items():
                engine = Path(folder) / f"{variant}-{name}.engine"
                build_engine(checkpoint, engine, precision=precision, cache_dtype=cache)
                against.append(_noise(truths[variant], engine, variant))
                same.append(_noise(_record(variant, precision, cache), engine, variant))
            yield sum(against[1:], against[0]).profile(name)
            yield sum(same[1:], same[0]).profile(f"same-{name}")


@cache
def _record(variant: str, precision: str, cache: str) -> Golden:
    """The executor's golden, of the prompts and the text that the tests have."""
    prompts = json.loads((_TEXT.parent / variant / "goldens.json").read_text(encoding="utf-8"))["prompts"]
    model = open_model(str(_CHECKPOINTS[variant]), recipe=Recipe.for_precision(precision).with_cache(cache))
    text = encode(model, _TEXT.read_text(encoding="utf-8"), add_special_tokens=False)[:_TEXT_TOKENS]
    return record_golden(model, [FilePrompt(None, prompt["ids"]) for prompt in prompts], Settings(), text)


def _noise(golden: Golden, engine: Path, variant: str) -> Noise:
    found = measure_noise(golden, partial(_opened, str(engine)))
    return Noise(found.values, tuple(f"{variant} checkpoint: {run}" for run in found.runs))


def _opened(path: str, threads: int | None) -> GoldenModel:
    return open_model(path, threads=threads)


if __name__ == "__main__":
    main()
