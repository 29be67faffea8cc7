"""What each precision costs: perplexity, divergence and equal likeliest tokens against the float32 executor, and size.

    python benchmarks/precision.py [--checkpoint FOLDER] [--text FILE] [--calibration FILE] [--json FILE]

The text is one that the model has not seen. Without --calibration, the float32 engine writes the calibration text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recipes import with_method
from dsv3export import Engine
from dsv3export.evaluate import Comparison, compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine

_ROOT = Path(__file__).resolve().parents[1]
_SAMPLES, _SAMPLE_TOKENS = 32, 255


@dataclass(frozen=True)
class Variant:
    """A way to build an engine: a recipe as TOML, and whether it is fitted to the calibration text."""

    recipe: str
    calibrated: bool = False


VARIANTS: Mapping[str, Variant] = {
    "float32": Variant('precision = "fp32"'),
    "fp8": Variant('precision = "fp8"'),
    "int8": Variant('precision = "int8"'),
    "int8, calibrated": Variant('precision = "int8"', calibrated=True),
    "int4, plain rounding": Variant(with_method("int4", "rtn")),
    "int4": Variant('precision = "int4"'),
    "int4, calibrated": Variant('precision = "int4"', calibrated=True),
}


@dataclass(frozen=True)
class Measured:
    """An engine's size in bytes, and its predictions beside the executor's."""

    nbytes: int
    comparison: Comparison


class Laboratory:
    """Builds engines of one checkpoint in a folder and compares each with the float32 executor on one text.

    Args:
        calibration: A text file; None for one that the float32 engine writes.
    """

    def __init__(self, checkpoint: Path, text: Path, folder: Path, calibration: Path | None = None) -> None:
        self._checkpoint, self._folder, self._calibration = checkpoint, folder, calibration
        self._executor = Executor.from_checkpoint(checkpoint)
        self._text = text.read_text(encoding="utf-8")

    def measure(self, variant: Variant) -> Measured:
        """Raises UserError where the variant cannot be built."""
        recipe, out = self._folder / "recipe.toml", self._folder / "engine"
        recipe.write_text(variant.recipe, encoding="utf-8")
        calibration = self._calibration_text() if variant.calibrated else None
        report = build_engine(self._checkpoint, out, recipe=recipe, force=True, calibration=calibration, mtp=False)
        engine = Engine.load(out, threads=1)
        ids = engine.tokenizer.encode(self._text, add_special_tokens=False) if engine.tokenizer else []
        weights = sum(entry.nbytes for entry in report.manifest.weights)
        return Measured(weights, compare(engine, self._executor, ids))

    def _calibration_text(self) -> Path:
        if self._calibration is None:
            self._calibration = self._folder / "written.txt"
            out = self._folder / "float32"
            build_engine(self._checkpoint, out)
            self._calibration.write_text(written_text(Engine.load(out, threads=1)), encoding="utf-8")
        return self._calibration


def written_text(engine: Engine) -> str:
    """32 samples of 255 tokens at temperature 1, from a fixed seed."""
    start = engine.config.bos_token_id or 0
    samples = engine.generate(
        [[start]] * _SAMPLES, max_new_tokens=_SAMPLE_TOKENS, temperature=1.0, seed=1, ignore_eos=True
    )
    return "\n".join(sample.text for sample in samples)


def share_removed(better: Comparison, plain: Comparison) -> tuple[float, float]:
    """How much of `plain`'s increase in mean nll `better` does not have (1 = all), and its standard error.

    Both were compared with the same predictions of the same text; the error is that of paired differences, to first
    order.
    """
    increase = plain.model.token_nll - plain.against.token_nll
    left = better.model.token_nll - better.against.token_nll
    ratio = left.mean() / increase.mean()
    error = (left - ratio * increase).std(ddof=1) / math.sqrt(len(left)) / abs(increase.mean())
    return float(1 - ratio), float(error)


def figures(measured: Measured) -> dict[str, float]:
    """What the table shows of an engine, JSON-able."""
    comparison = measured.comparison
    names = (
        "perplexity_ratio", "perplexity_ratio_error", "kl_mean", "kl_error", "kl_p99", "kl_max",
        "top1_agreement", "top1_error",
    )  # fmt: skip
    return {
        "weight_bytes": measured.nbytes,
        "perplexity": comparison.model.perplexity,
        **{name: getattr(comparison, name) for name in names},
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| engine | weights, MB | perplexity | against float32 | KL, nats | same top token |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        increase, error = 100 * (row["perplexity_ratio"] - 1), 100 * row["perplexity_ratio_error"]
        size, kl, top1 = row["weight_bytes"] / 1e6, row["kl_mean"], row["top1_agreement"]
        changed = f"{increase:+.2f} ± {error:.2f} %"
        yield f"| {name} | {size:.1f} | {row['perplexity']:.3f} | {changed} | {kl:.1e} | {top1:.1%} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = _ROOT / "tests/data"
    parser.add_argument("--checkpoint", type=Path, default=data / "tiny-dsv3-bf16")
    parser.add_argument("--text", type=Path, default=data / "goldens/heldout.txt")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument(
        "--only", type=lambda text: text.split(";"), default=list(VARIANTS), help="names, with ; between"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    with TemporaryDirectory() as folder:
        laboratory = Laboratory(options.checkpoint, options.text, Path(folder), options.calibration)
        measured = {name: laboratory.measure(variant) for name, variant in VARIANTS.items()}
    rows = {name: figures(one) for name, one in measured.items()}
    for line in table(rows):
        print(line)
    for name in ("int4", "int4, calibrated"):
        share, error = share_removed(measured[name].comparison, measured["int4, plain rounding"].comparison)
        print(f"{name}: {share:.0%} ± {error:.0%} of plain rounding's increase is gone")
    if options.json:
        options.json.write_text(
            json.dumps({"benchmark": "precision", "engines": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
