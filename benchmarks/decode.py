"""Speed and memory of a float32 engine against transformers, on the same model, the same machine, in the same minutes.

    python benchmarks/decode.py [--preset 0.5b] [--threads 1,2] [--prompt-tokens 128] [--new-tokens 32] [--json FILE]

Exit code 1 if the programs do not compute the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.agreement import compare
from benchmarks.launch import run_undisturbed, run_worker
from benchmarks.limits import Limits
from benchmarks.machine import machine_facts
from benchmarks.presets import PRESETS
from benchmarks.report import print_report
from benchmarks.subjects import OURS, SUBJECTS
from benchmarks.summary import figures, shares_of_limits, summarise
from benchmarks.synthetic import write_checkpoint
from dsv3export.config import ModelConfig
from dsv3export.model_size import count_parameters

_MAX_OTHERS = 0.2


class Comparison:
    """The measurements of one call of this script; all files it makes lie in `folder`."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.checkpoint, self.engine = folder / "checkpoint", folder / "engine"
        config = PRESETS[options.preset]
        self.size = count_parameters(ModelConfig.from_dict(dict(config), source=options.preset))
        write_checkpoint(self.checkpoint, config)
        ids = np.random.default_rng(0).integers(3, config["vocab_size"], options.prompt_tokens)
        self.prompt = [int(token) for token in ids]

    def run(self) -> dict[str, Any]:
        """The whole result, JSON-able."""
        before = machine_facts()
        builds = [
            run_worker("build", 1, checkpoint=self.checkpoint, engine=self.engine) for _ in range(self.options.repeats)
        ]
        by_threads = {str(threads): self._with_threads(threads) for threads in self.options.threads}
        return {
            "benchmark": "decode",
            "command": shlex.join(["python", "benchmarks/decode.py", *sys.argv[1:]]),
            "machine": {**before, "load_average_after": machine_facts()["load_average"]},
            "model": {"preset": self.options.preset, "parameters": self.size.total, "active": self.size.active},
            "settings": {name: getattr(self.options, name) for name in ("prompt_tokens", "new_tokens", "repeats")},
            "build": builds,
            "threads": by_threads,
        }

    def _with_threads(self, threads: int) -> dict[str, Any]:
        """All subjects in turn, several times over, the machine's limits measured before each turn."""
        runs: dict[str, list[dict[str, Any]]] = {subject: [] for subject in SUBJECTS}
        limits: list[Limits] = []
        for repeat in range(self.options.repeats):
            limits.append(Limits(**run_worker("limits", threads)))
            for subject in SUBJECTS:
                runs[subject].append(self._generate(subject, threads))
                _say(f"threads {threads}, repeat {repeat + 1}/{self.options.repeats}: {subject}")
        prompt, new = self.options.prompt_tokens, self.options.new_tokens
        found = summarise({subject: [figures(run, prompt, new) for run in each] for subject, each in runs.items()})
        best = Limits(
            max(limit.read_bytes_per_second for limit in limits),
            max(limit.float32_flop_per_second for limit in limits),
            limits[0].array_bytes,
        )
        tokens = {subject: each[-1]["token_ids"] for subject, each in runs.items()}
        return {
            **found,
            "limits": best.as_json(),
            "shares_of_limits": shares_of_limits(found["subjects"][OURS], best, self.size.active),
            "agreement": compare({subject: self._logits(subject) for subject in SUBJECTS}, tokens),
            "runs": runs,
        }

    def _generate(self, subject: str, threads: int) -> dict[str, Any]:
        return run_undisturbed(
            "generate", threads, _MAX_OTHERS, self.options.tries, self.options.patience,
            subject=subject, checkpoint=self.checkpoint, engine=self.engine, prompt=self.prompt,
            new_tokens=self.options.new_tokens, passes=self.options.passes, logits=self._logits(subject),
        )  # fmt: skip

    def _logits(self, subject: str) -> Path:
        return self.folder / f"{subject.replace(' ', '-')}.npy"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="0.5b")
    parser.add_argument("--threads", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32, help="decode steps measured in a pass")
    parser.add_argument("--passes", type=int, default=3, help="measured passes in a process, after one to warm up")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each subject, taking turns")
    parser.add_argument("--tries", type=int, default=2, help="runs of a process that other programs disturb, at most")
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait for other programs, each time")
    parser.add_argument("--work-dir", type=Path, help="where the model is made, for as long as this runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    # gigabytes of temporary files go also when this is terminated
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with TemporaryDirectory(prefix="dsv3export-benchmark-", dir=options.work_dir) as folder:
        result = Comparison(options, Path(folder)).run()
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_report(result)
    compared = (one for found in result["threads"].values() for one in found["agreement"].values())
    return 0 if all(one["agree"] for one in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
