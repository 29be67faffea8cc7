#!/usr/bin/env python
"""Integer products of the native CPU kernels beside ONNX Runtime's, at the shapes of the models; see README.md.

Each line is one projection with one number of rows: its time, the rate at which it reads weights and computes, and how
many times faster than `MatMulNBits` it is, measured in turn in the same process. For few rows there are as many copies
of the weights as no cache holds, so that each product reads them from memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.command import numbers
from benchmarks.machine import machine_facts
from benchmarks.native_session import Projection, Subject, open_session
from benchmarks.presets import PRESETS
from dsv3export.bench.bandwidth import read_bandwidth
from dsv3export.runtime import cpu_kernels
from dsv3export.runtime.onnxruntime_arrays import ort_value

# Bits and group of the presets int8 and int4.
FORMATS = ((8, 32), (4, 128))
# Up to so many rows, reading of the weights takes the time.
_FEW_ROWS = 16
_COPIES_FOR_MANY_ROWS = 6


@dataclass(frozen=True)
class Measured:
    """One projection, one number of rows; times are seconds of one product, medians."""

    projection: Projection
    rows: int
    threads: int
    native_seconds: float
    onnxruntime_seconds: float
    read_bytes_per_second: float  # of the machine, with as many threads

    @property
    def bytes_per_second(self) -> float:
        return self.projection.nbytes / self.native_seconds

    @property
    def operations_per_second(self) -> float:
        return 2 * self.rows * self.projection.columns * self.projection.depth / self.native_seconds

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "gb_per_second": round(self.bytes_per_second / 1e9, 2),
            "of_bandwidth": round(self.bytes_per_second / self.read_bytes_per_second, 3),
            "gop_per_second": round(self.operations_per_second / 1e9, 1),
            "times_matmulnbits": round(self.onnxruntime_seconds / self.native_seconds, 2),
        }

    def line(self) -> str:
        one, times = self.projection, self.onnxruntime_seconds / self.native_seconds
        shape = f"{one.name:5} {one.bits} bits / {one.group:<4} {one.columns:6} x {one.depth:<5}"
        how = f"rows {self.rows:4} threads {self.threads} {self.native_seconds * 1e6:9.1f} us"
        reading = f"{self.bytes_per_second / 1e9:5.1f} GB/s ({self.bytes_per_second / self.read_bytes_per_second:4.0%})"
        peer = f"{times:.2f} x MatMulNBits ({self.onnxruntime_seconds * 1e6:.1f} us)"
        return f"{shape} {how} {reading} {self.operations_per_second / 1e9:6.0f} Gop/s {peer}"


def projections(preset: str, formats: Sequence[tuple[int, int]] = FORMATS) -> Iterator[Projection]:
    """Those of one model, the largest kinds; the head has 8 bits in both formats."""
    sizes = PRESETS[preset]
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    query = sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"]
    shapes = {
        "kv_a": (sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"], hidden),
        "q_b": (heads * query, sizes["q_lora_rank"]),
        "o": (hidden, heads * sizes["v_head_dim"]),
        "gate": (sizes["intermediate_size"], hidden),
        "head": (sizes["vocab_size"], hidden),
    }
    for bits, group in formats:
        for name, (columns, depth) in shapes.items():
            if name != "head" or bits == 8:
                yield Projection(name, bits, group, columns, depth)


def measure(
    projection: Projection, rows: Sequence[int], threads: int, cold_bytes: int, seconds: float, bandwidth: float
) -> Iterator[Measured]:
    """For each number of rows; the two subjects take turns."""
    cold = max(2, -(-cold_bytes // projection.nbytes))
    for few, copies in ((True, cold), (False, min(cold, _COPIES_FOR_MANY_ROWS))):
        chosen = [count for count in rows if (count <= _FEW_ROWS) == few]
        if not chosen:
            continue
        with TemporaryDirectory() as folder:
            subjects = {
                subject: open_session(subject, projection, copies, threads, Path(folder)) for subject in Subject
            }
            outputs = [f"y_{index}" for index in range(copies)]
            for count in chosen:
                x = {"x": ort_value(np.random.default_rng(0).standard_normal((count, projection.depth), np.float32))}
                times = {subject: [float("inf")] for subject in Subject}
                for subject, session in subjects.items():
                    session.run_with_ort_values(outputs, x)
                    times[subject].clear()
                end = time.perf_counter() + seconds
                while time.perf_counter() < end or len(times[Subject.NATIVE]) < 3:
                    for subject, session in subjects.items():
                        begin = time.perf_counter()
                        session.run_with_ort_values(outputs, x)
                        times[subject].append((time.perf_counter() - begin) / copies)
                medians = {subject: statistics.median(values) for subject, values in times.items()}
                yield Measured(
                    projection, count, threads, medians[Subject.NATIVE], medians[Subject.ONNXRUNTIME], bandwidth
                )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if cpu_kernels.library() is None:
        print(f"benchmarks/native.py: the native CPU kernels were not compiled. {cpu_kernels.HOW_TO_GET}")
        return 2
    limits = {threads: read_bandwidth(threads, options.cold_bytes) for threads in options.threads}
    for threads, rate in limits.items():
        print(f"reading with {threads} threads: {rate / 1e9:.1f} GB/s")
    results = []
    for threads in options.threads:
        for projection in projections(options.preset):
            if options.names and projection.name not in options.names:
                continue
            for measured in measure(
                projection, options.rows, threads, options.cold_bytes, options.seconds, limits[threads]
            ):
                print(measured.line(), flush=True)
                results.append(measured.as_json())
    if options.json is not None:
        description = cpu_kernels.describe()
        document = {
            "machine": machine_facts(),
            "isa": description.isa if description else None,
            "preset": options.preset,
            "read_bytes_per_second": limits,
            "results": results,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="0.5b")
    parser.add_argument("--names", type=lambda text: text.split(","), help="of projections, e.g. q_b,o; default all")
    parser.add_argument("--rows", type=numbers, default=(1, 8, 128, 512))
    parser.add_argument("--threads", type=numbers, default=(1, 2))
    parser.add_argument("--cold-bytes", type=int, default=400 << 20, help="of weights that products of few rows read")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each number of rows")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
