"""How close are the kernels to the hardware's limits? One command on a machine with an NVIDIA GPU.

    pip install torch triton numpy ml_dtypes          (any torch for CUDA; 2.11 with Triton 3.6 will do)
    python benchmarks/kernels.py                      everything, in parts of under ten minutes (see --minutes)
    python benchmarks/kernels.py --quick              one shape of each kernel, those that the goals name: two minutes
    python benchmarks/kernels.py --kernels fp8_gemm,mla_decode --shapes M=64,heads=16
    python benchmarks/kernels.py --tune --quick       measures tiles, writes plugins/tuning/<device>.json, then as above
    python benchmarks/kernels.py --interpret          no GPU: tiny shapes in Triton's interpreter, checked, not timed

Run it from the repository, which need not be installed. `decode_step` also needs the packages of the extra `build`
(onnx, onnx_ir) and 60 GB of GPU memory, and is left out without them. FlashInfer, FlashMLA and DeepGEMM are
compared with where they can be imported. A case is checked against float32 before it is timed. After --minutes
(default 9) no further case begins: those left out are listed, and the same command with --resume goes on with them.

Each line: microseconds (CUDA events around a CUDA graph of many runs, inputs rotating through more than the last
cache), GB/s and TFLOP/s of what was counted (`gpu/shapes.py`), shares of the bandwidth of a copy and of the rate of a
large product measured in this run, time over floor, and the fastest peer with the same numbers: its time over ours.
Exit code 1 if a kernel is wrong.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu import report
from benchmarks.gpu.limits import Limits, measured_limits
from benchmarks.gpu.measure import Bench, Result, measured, prepared, tuned
from benchmarks.gpu.shapes import CASES, KERNELS, QUICK, TINY, TINY_MODEL, TRUE_MODEL, Case
from benchmarks.gpu.timing import CudaTimer, NoTimer
from dsv3export.plugins.kernels.tuning import Tuning, tuning_for, write_tuning

_INTERPRETED = 90
# An H100's, for versions of torch that do not tell.
_CACHE = 50 << 20
_FOR_THE_GRAPH = ("onnx", "onnx_ir")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    cases = chosen(options)
    if options.interpret:
        bench, made = _interpreter(), report.facts("Triton's interpreter", "none")
    else:
        if not torch.cuda.is_available():
            print("benchmarks/kernels.py: expected an NVIDIA GPU and a torch for CUDA; --interpret needs none")
            return 2
        bench, made = _gpu()
    path = options.json or (None if options.interpret else report.results_path(made["device"]))
    old = report.read(path) if path is not None and options.resume else None
    if old is not None:
        done = {(row["kernel"], row["shape"]) for row in old["results"]}
        cases = [case for case in cases if (case.kernel, case.shape) not in done]
    if options.tune:
        bench = _tune(cases, bench, made, options)
    return _measure(cases, bench, made, options.minutes, path, old)


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name; a shape matches if all its given sizes do, e.g. ``M=64`` or ``M=64 N=2112``."""
    table: Sequence[Case] = TINY if options.interpret else CASES
    if options.quick and not options.interpret:
        table = [case for case in CASES if case in QUICK]
    return [
        case
        for case in table
        if (options.kernels is None or case.kernel in options.kernels)
        and (options.shapes is None or any(_matches(case, shape) for shape in options.shapes))
    ]


def _matches(case: Case, shape: str) -> bool:
    sizes = {f"{name}={value}" for name, value in case.sizes}
    return set(shape.split()) <= sizes


def _gpu() -> tuple[Bench, dict[str, str]]:
    # Triton's own import decides whether kernels are compiled.
    from dsv3export.plugins.kernels.native import capability, run_native

    device = torch.device("cuda", torch.cuda.current_device())
    facts, name = torch.cuda.get_device_properties(device), torch.cuda.get_device_name(device)
    # Left free: weights of peers, torch's own buffers.
    memory = int(0.25 * facts.total_memory)
    bench = Bench(
        run_native, capability(device), device, facts.multi_processor_count, CudaTimer(), tuning_for(name), TRUE_MODEL,
        getattr(facts, "L2_cache_size", _CACHE), memory,
    )  # fmt: skip
    return bench, report.facts(name, _driver())


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() else "unknown"


def _interpreter() -> Bench:
    from dsv3export.plugins.kernels.interpreter import interpret, start_interpreting

    start_interpreting()
    return Bench(
        interpret, _INTERPRETED, torch.device("cpu"), 4, NoTimer(), Tuning("interpreter"), TINY_MODEL, 1, 1
    )  # fmt: skip


def _tune(cases: Sequence[Case], bench: Bench, made: dict[str, str], options: argparse.Namespace) -> Bench:
    """Measures, writes the device's table, and goes on with it. An interpreter's times make no table."""
    how = {**made, "by": "benchmarks/kernels.py --tune"}
    table = replace(bench.tuning, made=how)
    for case in _within(cases, options.minutes, []):
        if case.kernel == "decode_step":
            continue
        found = tuned(case, prepared(case, bench), bench)
        for tile in found.tiles:
            print(f"tuned {tile.plugin:20} {case.shape:58} {tile.default_microseconds:9.1f} -> {tile.microseconds:.1f}")
        table = table.merged(replace(found, made=how))
        _free()
    if not options.interpret:
        print(f"wrote {write_tuning(table)}")
    return replace(bench, tuning=table)


def _measure(
    cases: Sequence[Case], bench: Bench, made: dict[str, str], minutes: float, path: Path | None, old: object
) -> int:
    limits = _limits(bench)
    print(report.HEADINGS)
    results: list[Result] = []
    left_out: list[str] = []
    for case in _within(cases, minutes, left_out):
        result = _one(case, bench, limits)
        if result is None:
            left_out.append(f"{case.kernel}: {case.shape}")
            continue
        results.append(result)
        print(report.line(result), flush=True)
        if path is not None:
            content = report.document(made, limits, [each.to_json() for each in results], left_out)
            report.write(path, report.merged(old if isinstance(old, dict) else None, content))
    for name in left_out:
        print(f"left out: {name}")
    wrong = [result for result in results if not result.right]
    print(f"{len(results)} cases, {len(wrong)} wrong, {len(left_out)} left out" + (f"; {path}" if path else ""))
    return 1 if wrong else 0


def _one(case: Case, bench: Bench, limits: Limits) -> Result | None:
    """None for what cannot run here: a missing package, too little memory."""
    try:
        if case.kernel != "decode_step":
            return measured(case, prepared(case, bench), bench, limits)
        if missing := [name for name in _FOR_THE_GRAPH if find_spec(name) is None]:
            print(f"decode_step needs {', '.join(missing)}")
            return None
        from benchmarks.gpu.decode_step import measured_step

        return measured_step(case, bench, limits)
    except torch.OutOfMemoryError as problem:
        print(f"{case.kernel} {case.shape}: {str(problem).splitlines()[0]}")
        return None
    finally:
        _free()


def _limits(bench: Bench) -> Limits:
    if bench.device.type != "cuda":
        return Limits(float("nan"))
    limits = measured_limits(bench.timer, bench.device)
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in limits.rates.items())
    print(f"copy {limits.bandwidth / 1e9:.0f} GB/s; products {rates}")
    return limits


def _within(cases: Sequence[Case], minutes: float, left_out: list[str]) -> Iterator[Case]:
    """The cases until the time is up; the rest go to `left_out`."""
    end = time.monotonic() + 60 * minutes
    for case in cases:
        if time.monotonic() < end:
            yield case
        else:
            left_out.append(f"{case.kernel}: {case.shape}")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=_names, metavar="NAME,..", help=f"of {', '.join(KERNELS)}")
    parser.add_argument(
        "--shapes", type=lambda text: text.split(","), metavar="SIZES,..", help="e.g. 'M=64 N=2112,M=1'"
    )
    parser.add_argument("--quick", action="store_true", help="one shape of each kernel")
    parser.add_argument("--tune", action="store_true", help="measure tiles first, and write the device's table")
    parser.add_argument("--interpret", action="store_true", help="tiny shapes on the CPU, checked and not timed")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="no case begins later (default 9)")
    parser.add_argument("--resume", action="store_true", help="leave out what the results file has")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="results; default benchmarks/results/kernels-<device>"
    )
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if wrong := [name for name in names if name not in KERNELS]:
        raise argparse.ArgumentTypeError(f"expected names of {', '.join(KERNELS)}; got {', '.join(wrong)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
