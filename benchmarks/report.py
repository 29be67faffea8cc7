"""A result as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

_ROWS = {
    "prefill tokens/s, wall": "prefill_tokens_per_s_wall",
    "prefill tokens/s, CPU": "prefill_tokens_per_s_cpu",
    "decode tokens/s, wall": "decode_tokens_per_s_wall",
    "decode tokens/s, CPU": "decode_tokens_per_s_cpu",
    "start until ready, s": "ready_s_wall",
    "peak memory, GB": "peak_rss_gb",
    "of it private, GB": "anonymous_rss_gb",
}


def print_report(result: Mapping[str, Any]) -> None:
    """Medians with (lowest-highest), and ratios ours / theirs."""
    machine, model = result["machine"], result["model"]
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average'][0]:.1f} at the start")
    print(
        f"model {model['preset']}: {model['parameters'] / 1e6:.0f} M parameters, {model['active'] / 1e6:.0f} M active"
    )
    builds = result["build"]
    wall, peak = (
        median(values) for values in ([b["total"]["wall"] for b in builds], [b["peak_rss_bytes"] for b in builds])
    )
    print(f"build: {wall:.1f} s, peak memory {peak / 1e9:.2f} GB, engine {builds[0]['engine_bytes'] / 1e9:.2f} GB")
    for threads, found in result["threads"].items():
        print(f"\nthreads: {threads}")
        _print_table(found)
        _print_limits(found)
        for subject, one in found["agreement"].items():
            print(
                f"same model as {subject}: {'yes' if one['agree'] else 'NO'} (logits within "
                f"{one['max_abs_logit_difference']:.1e}, {one['same_tokens']}/{one['tokens']} tokens the same)"
            )
        disturbed = [run["others"] for runs in found["runs"].values() for run in runs if run["disturbed"]]
        if disturbed:
            print(f"disturbed by other programs: {len(disturbed)} runs, by up to {max(disturbed):.1f} cores")


def _print_table(found: Mapping[str, Any]) -> None:
    header = [*found["subjects"], *(f"/ {subject}" for subject in found["ratios"])]
    columns = [*found["subjects"].values(), *found["ratios"].values()]
    print(f"{'':24}" + "".join(f"{title:>24}" for title in header))
    for title, name in _ROWS.items():
        print(f"{title:24}" + "".join(f"{_cell(column[name]):>24}" for column in columns))


def _cell(spread: Mapping[str, float]) -> str:
    digits = 2 if spread["high"] < 20 else 1
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f}-{spread['high']:.{digits}f})"


def _print_limits(found: Mapping[str, Any]) -> None:
    limits, shares = found["limits"], found["shares_of_limits"]
    print(
        f"limits: reads {limits['read_bytes_per_second'] / 1e9:.1f} GB/s, multiplies float32 at "
        f"{limits['float32_flop_per_second'] / 1e9:.0f} GFLOP/s; our decode reads weights at "
        f"{shares['decode_of_read_bandwidth']:.0%} of the one, our prefill computes at "
        f"{shares['prefill_of_matmul']:.0%} of the other"
    )
