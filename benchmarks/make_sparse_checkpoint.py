"""Make a checkpoint with the true shapes of a large model, all weights 0, that takes next to no disk.

    python benchmarks/make_sparse_checkpoint.py OUT [--preset deepseek-v3] [--layers N] [--json]

For measuring builds and start-up at full scale; it writes no sense. The 671 B model: files of 689 GB, 0.2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.presets import PRESETS
from benchmarks.sparse import SparseCheckpoint, write_sparse
from dsv3export.cli.failures import exit_code_of
from dsv3export.cli.options import Invocation
from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.errors import ConfigError
from dsv3export.presets import NAMES, preset

TOKENIZER = Path(__file__).resolve().parents[1] / "examples" / "tiny-dsv3"


def config_of(name: str, layers: int | None) -> dict[str, Any]:
    """The config.json of a preset, of its first `layers` decoder layers. Raises ConfigError."""
    key = name.replace("-", "_")
    if name not in PRESETS and key not in NAMES:
        known = ", ".join(sorted([*PRESETS, *(known.replace("_", "-") for known in NAMES)]))
        raise ConfigError("--preset", expected=f"one of {known}", got=name)
    config = dict(PRESETS[name] if name in PRESETS else preset(key).raw)
    if layers is None:
        return config
    if not 1 <= layers <= config["num_hidden_layers"]:
        raise ConfigError("--layers", expected=f"1 to {config['num_hidden_layers']}, those of {name}", got=str(layers))
    return {**config, "num_hidden_layers": layers}


def _make(options: argparse.Namespace) -> None:
    started = time.monotonic()
    config = config_of(options.preset, options.layers)
    with progress_on_stderr(options.quiet) as progress:
        written = write_sparse(options.out, config, TOKENIZER, progress)
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps({"checkpoint": str(options.out), **asdict(written), "seconds": seconds}))
    elif not options.quiet:
        print(_sentence(options.out, written, seconds), file=sys.stderr)


def _sentence(out: Path, written: SparseCheckpoint, seconds: float) -> str:
    return (
        f"made {out} in {seconds:.1f} s: {written.tensors:,} tensors in {written.shards} shards of "
        f"{written.nbytes / 1e9:,.1f} GB, which take {written.disk_bytes / 1e9:.2f} GB of disk"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--preset", default="deepseek-v3", help="whose shapes (default: deepseek-v3)")
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N decoder layers")
    parser.add_argument("--json", action="store_true", help="print the summary as one line of JSON on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    return exit_code_of(lambda: _make(options), Invocation())


if __name__ == "__main__":
    sys.exit(main())
