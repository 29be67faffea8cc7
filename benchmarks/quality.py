"""What int8 and int4 cost in quality, beside llama.cpp's Q8_0 and Q4_0: one model, one text, one run.

    python benchmarks/quality.py [--checkpoint FOLDER] [--text FILE] [--calibration FILE] [--json FILE]

Needs the packages of `make bench-setup`. The protocol is that of `dsv3export eval`: chunks of the text behind a BOS;
all programs are given the same token ids and compared with the float32 executor.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from benchmarks.peers import require_peers

    require_peers("gguf", "llama_cpp")

from rich.table import Table

from benchmarks.gguf_file import quantise_gguf, types_in, write_gguf
from benchmarks.llama_cpp_model import LlamaCppModel
from benchmarks.machine import machine_facts
from benchmarks.precision import written_text
from benchmarks.report import table_console
from benchmarks.subjects import Logits
from dsv3export import Engine
from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine.reader import EngineFiles
from dsv3export.evaluate import CHUNK_TOKENS, Comparison, LanguageModel, compare
from dsv3export.graphs import Executor
from dsv3export.graphs.build import build_engine
from dsv3export.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """One model's line: bytes of its weights, and how it compares with the float32 executor (KL in nats)."""

    megabytes: float
    perplexity: float
    perplexity_change: float
    kl_mean: float
    kl_max: float
    top1_agreement: float

    @classmethod
    def of(cls, comparison: Comparison, weight_bytes: int) -> Row:
        return cls(
            weight_bytes / 1e6, comparison.model.perplexity, comparison.perplexity_ratio - 1, comparison.kl_mean,
            comparison.kl_max, comparison.top1_agreement,
        )  # fmt: skip


class _Remembered:
    """A model that computes each chunk once, as all others are compared with it."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], Logits] = {}

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    def logits(self, token_ids: list[int], /) -> Logits:
        key = tuple(token_ids)
        if key not in self._known:
            self._known[key] = self._model.logits(token_ids)
        return self._known[key]


@dataclass(frozen=True)
class _Gguf:
    """A GGUF file as `evaluate` wants it."""

    model: LlamaCppModel
    config: ModelConfig

    def logits(self, token_ids: list[int], /) -> Logits:
        return self.model.logits(token_ids)


class Quality:
    """The comparison; engines and GGUF files are made in `folder`."""

    def __init__(self, checkpoint: Path, token_ids: list[int], chunk_tokens: int, folder: Path) -> None:
        self._checkpoint = Checkpoint.open(checkpoint)
        self._ids, self._chunk_tokens, self._folder = token_ids, chunk_tokens, folder
        self._float32 = _Remembered(Executor(self._checkpoint))

    def ours(self, calibration: Path | None) -> Iterator[tuple[str, Row]]:
        """(name, figures) of the presets and of int4 with a calibration text: what float32 writes, if None."""
        yield "dsv3export float32", self._engine("fp32")
        for precision in ("int8", "int4"):
            yield f"dsv3export {precision}", self._engine(precision)
        text = calibration or self._self_written()
        yield "dsv3export int4, calibrated", self._engine("int4", text)

    def theirs(self) -> Iterator[tuple[str, Row]]:
        """(name, figures) of llama.cpp's formats."""
        exact = write_gguf(self._checkpoint, self._folder / "F32.gguf", "F32")
        yield "llama.cpp F32", self._gguf(exact, float32_cache=True)
        source = write_gguf(self._checkpoint, self._folder / "BF16.gguf", "BF16")
        for file_type, head in (("Q8_0", "Q8_0"), ("Q4_0", "Q8_0"), ("Q4_0", None)):
            file = quantise_gguf(source, self._folder / f"{file_type}-{head}.gguf", file_type, head_type=head)
            stored = types_in(file)["output.weight"]
            yield f"llama.cpp {file_type}" + (f", head {stored}" if stored != file_type else ""), self._gguf(file)

    def _engine(self, precision: str, calibration: Path | None = None) -> Row:
        out = self._folder / f"{precision}.engine"
        build_engine(self._checkpoint.path, out, precision=precision, calibration=calibration, force=True, mtp=False)
        size = sum(entry.nbytes for entry in EngineFiles.open(out).manifest.weights)
        return self._row(Engine.load(out, threads=1), size)

    def _gguf(self, file: Path, float32_cache: bool = False) -> Row:
        model = LlamaCppModel(file, 1, self._chunk_tokens + 1, float32_cache)
        try:
            return self._row(_Gguf(model, self._checkpoint.config), model.weight_bytes)
        finally:
            model.close()

    def _row(self, model: LanguageModel, weight_bytes: int) -> Row:
        return Row.of(compare(model, self._float32, self._ids, self._chunk_tokens), weight_bytes)

    def _self_written(self) -> Path:
        """A calibration text that the float32 engine writes, from a fixed seed."""
        text = self._folder / "written.txt"
        text.write_text(written_text(Engine.load(self._folder / "fp32.engine", threads=1)), encoding="utf-8")
        return text


def print_rows(rows: Mapping[str, Row]) -> None:
    table = Table("", "weights, MB", "perplexity", "against float32", "KL, nats", "same top token")
    for name, row in rows.items():
        table.add_row(
            name, f"{row.megabytes:.2f}", f"{row.perplexity:.3f}", f"{row.perplexity_change:+.2%}",
            f"{row.kl_mean:.1e}", f"{row.top1_agreement:.1%}",
        )  # fmt: skip
    table_console().print(table)


def main() -> int:
    data = Path(__file__).resolve().parents[1] / "tests" / "data"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=data / "tiny-dsv3-bf16", help="one with a tokenizer")
    parser.add_argument("--text", type=Path, default=data / "goldens" / "heldout.txt")
    parser.add_argument("--chunk-tokens", type=int, default=CHUNK_TOKENS)
    parser.add_argument("--calibration", type=Path, help="a text; by default, one that the float32 engine writes")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    ids = Tokenizer.from_directory(options.checkpoint).encode(
        options.text.read_text(encoding="utf-8"), add_special_tokens=False
    )
    rows: dict[str, Row] = {}
    with TemporaryDirectory(prefix="dsv3export-quality-") as folder:
        quality = Quality(options.checkpoint, ids, options.chunk_tokens, Path(folder))
        for name, row in chain(quality.ours(options.calibration), quality.theirs()):
            print(f"{name}: perplexity {row.perplexity:.3f}", file=sys.stderr, flush=True)
            rows[name] = row
    if options.json:
        result = {
            "benchmark": "quality",
            "command": shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]]),
            "machine": machine_facts(),
            "settings": {"tokens": len(ids), "chunk_tokens": options.chunk_tokens},
            "rows": {name: asdict(row) for name, row in rows.items()},
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
