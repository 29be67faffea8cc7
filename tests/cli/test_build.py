"""`dsv3export build`: summary, quiet, JSON, progress."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from pathlib import Path

from dsv3export.cli import capabilities
from dsv3export.engine.manifest import Manifest
from tests.support.command_line import run_here, run_process


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_summary_and_json(tiny_fp8: Path, tmp_path: Path) -> None:
    engine = tmp_path / "tiny.engine"
    told = run_here("build", tiny_fp8, "-o", engine)
    assert (told.code, told.out, len(told.err_lines)) == (0, "", 1)
    assert told.err.startswith(f"built {engine} in ")

    machine = run_here("build", tiny_fp8, "-o", engine, "--force", "--json")
    assert (machine.code, machine.err, machine.out.count("\n")) == (0, "", 1)
    facts = json.loads(machine.out)
    manifest = Manifest.read(engine)
    assert facts["engine"] == str(engine)
    assert (facts["backend"], facts["recipe"]["precision"]) == ("onnxruntime", "fp32")
    assert (facts["providers"], facts["compute"]) == (["cpu"], "fp32")
    stored, referenced = facts["weights"]["stored"], facts["weights"]["referenced"]
    assert stored["tensors"] + referenced["tensors"] == len(manifest.weights)
    assert stored["bytes"] + referenced["bytes"] == sum(entry.nbytes for entry in manifest.weights)
    # What is left out of the report is engine.json itself.
    assert abs(facts["engine_bytes"] + (engine / "engine.json").stat().st_size - size_of(engine)) < 1024
    assert facts["seconds"] > 0 and facts["resumed_bytes"] == 0 and 10**8 < facts["memory_bytes"] < 3 * 10**9


def test_it_says_that_fp8_is_rounded_once_more(tiny_fp8: Path, tiny_bf16: Path, tmp_path: Path) -> None:
    told = run_here("build", tiny_fp8, "-o", tmp_path / "engine", "--precision", "int8")
    assert told.err.rstrip().endswith("; FP8 weights requantised to int8")
    mixed = tmp_path / "mixed.toml"
    mixed.write_text(
        'precision = "int4"\n[first_layers]\ncount = 1\n[first_layers.components.attention]\nformat = "int8"\n'
    )
    cases = ((tiny_fp8, ("--recipe", mixed), ["int4", "int8"]), (tiny_fp8, ("--precision", "fp8"), []),
             (tiny_bf16, ("--precision", "int8"), []))  # fmt: skip
    for checkpoint, arguments, formats in cases:
        told = run_here("build", checkpoint, "-o", tmp_path / "engine", "--force", "--json", *arguments)
        assert json.loads(told.out)["requantised_from_fp8_to"] == formats


def test_cache_dtype_goes_over_the_recipe(tiny_fp8: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mix.toml"
    recipe.write_text('precision = "int8"\ncache = "fp8"\n')
    for options, expected, size in (((), "fp8", 776), (("--cache-dtype", "bf16"), "bf16", 1280)):
        built = run_here("build", tiny_fp8, "-o", tmp_path / expected, "--recipe", recipe, *options, "--json")
        assert json.loads(built.out)["recipe"]["cache"] == expected
        cache = json.loads(run_here("inspect", tmp_path / expected, "--json").out)["cache"]
        assert (cache["format"], cache["bytes_per_token"][expected]) == (expected, size)
        assert f"in {expected}" in run_here("inspect", tmp_path / expected).out
        assert run_here("run", tmp_path / expected, "--prompt", "And it", "--max-new-tokens", "2").code == 0


def test_for_another_provider(tiny_fp8: Path, tmp_path: Path) -> None:
    options = ("--precision", "int4", "--provider", "cuda", "--compute", "f16", "--json")
    facts = json.loads(run_here("build", tiny_fp8, "-o", tmp_path / "engine", *options).out)
    assert (facts["providers"], facts["compute"]) == (["cuda", "cpu"], "f16")
    shown = run_here("inspect", tmp_path / "engine").out
    assert "built for cuda, integer and fp8 weights in f16; runs on cpu too" in " ".join(shown.split())


def test_quiet_says_nothing(tiny_fp8: Path, tmp_path: Path) -> None:
    outcome = run_process("build", tiny_fp8, "--output", tmp_path / "engine", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_copy_weights(tiny_fp8: Path, tmp_path: Path) -> None:
    facts = json.loads(run_here("build", tiny_fp8, "-o", tmp_path / "engine", "--copy-weights", "--json").out)
    assert facts["weights"]["referenced"] == {"tensors": 0, "bytes": 0}


def test_progress_on_a_terminal(tiny_fp8: Path, tmp_path: Path) -> None:
    """All three streams are a terminal: the bar names what it counts and ends at the whole."""
    shown = on_a_terminal("build", str(tiny_fp8), "-o", str(tmp_path / "engine"))
    assert re.search(r"[0-9.]+ MB of weights to write, on [0-9]+ threads?, with [0-9.]+ [MG]B of memory at most", shown)
    assert "hashing weights" in shown
    assert "MiB" in shown
    assert "MB/s" in shown
    assert f"built {tmp_path}/engine" in shown.replace("\r\n", "")


def test_choices_are_those_of_the_compiler() -> None:
    """The tables are apart because importing the compiler imports torch."""
    from dsv3export.engine.manifest import COMPUTE
    from dsv3export.graphs.backends import BACKENDS
    from dsv3export.recipe import CACHE_FORMATS, PRECISIONS

    assert tuple(BACKENDS) == capabilities.BACKENDS
    assert capabilities.COMPUTE == COMPUTE
    assert capabilities.PRECISIONS == PRECISIONS
    assert capabilities.CACHE_FORMATS == CACHE_FORMATS
    assert capabilities.BUILD_PACKAGES.keys() == set(BACKENDS)


def on_a_terminal(*arguments: str) -> str:
    """What a command line that succeeds shows on a terminal 100 columns wide."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        os.execve(sys.executable, [sys.executable, "-m", "dsv3export", *arguments], environment)
    shown = b""
    try:
        while data := os.read(terminal, 4096):
            shown += data
    except OSError:
        # Linux says EIO where others say end of file.
        pass
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, shown
    return shown.decode("utf-8")


def test_an_engine_for_several_ranks(tiny_bf16: Path, tmp_path: Path) -> None:
    """The plan is printed, stored, and shown by inspect; what the layout does not divide leaves nothing behind."""
    engine = tmp_path / "cut.engine"
    told = run_here("build", tiny_bf16, "-o", engine, "--precision", "int8", "--pp", "2", "--tp", "2")
    assert told.code == 0
    assert "Ranks: pp 2 x tp 2 x ep 1" in told.out
    assert "3 x 2 x 1/2 x 1,024 (all_reduce)" in told.out
    shown = run_here("inspect", engine)
    assert (shown.code, "Ranks: pp 2 x tp 2 x ep 1" in shown.out) == (0, True)
    facts = json.loads(run_here("inspect", engine, "--json").out)["engine"]["parallel"]
    assert [plan["layers"] for plan in facts["ranks"]] == [[0, 3], [0, 3], [3, 4], [3, 4]]
    part = run_here("inspect", engine / "rank-002")
    assert (part.code, part.err) == (0, "")

    refused = run_here("build", tiny_bf16, "-o", tmp_path / "no.engine", "--ep", "5")
    assert (refused.code, len(refused.err_lines)) == (2, 1)
    assert "--ep = 5: expected a divisor of the model's 16 routed experts" in refused.err
    assert not (tmp_path / "no.engine").exists()
