from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.manifest import GraphRecord
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.staging import LOCK_NAME
from dsv3export.engine.writer import BY_REFERENCE, EngineWriter
from dsv3export.errors import EngineError, InternalError, ResourceError, TokenizerError
from tests.engine.small_engine import REFERENCED, build_small_engine, produce, small_manifest, small_plan
from tests.support.whole_weights import Produce, whole


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_an_engine_has_what_the_design_says(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "LICENSE").write_text("free")
    (checkpoint / "NOTICE.txt").write_text("noted")
    manifest = build_small_engine(tmp_path / "engine", checkpoint)
    files = {
        "LICENSE", "NOTICE.txt", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
        "tokenizer/generation_config.json", "weights/model-00001.safetensors", BY_REFERENCE,
    }  # fmt: skip
    assert contents(tmp_path / "engine") == files | {"engine.json", "graph/trunk.onnx", "graph", "weights", "tokenizer"}
    assert set(manifest.files) == files
    assert contents(tmp_path) >= {"engine", "checkpoint"} and len(list(tmp_path.iterdir())) == 2
    assert manifest.checkpoint.path == str(checkpoint)
    with safe_open(tmp_path / "engine/weights/model-00001.safetensors", "numpy") as file:
        assert np.array_equal(file.get_tensor("matrix"), np.arange(24, dtype=np.float32).reshape(4, 6))


def test_equal_inputs_give_equal_bytes(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("one", "two"):
        build_small_engine(tmp_path / name, checkpoint)
    one, two = tmp_path / "one", tmp_path / "two"
    _, different, failed = filecmp.cmpfiles(one, two, [n for n in contents(one) if (one / n).is_file()], shallow=False)
    assert different == ["engine.json"] and not failed
    manifests = [json.loads((path / "engine.json").read_text()) for path in (one, two)]
    for manifest in manifests:
        for record in manifest["files"].values():
            del record["mtime_ns"]
    assert manifests[0] == manifests[1]


def test_weights_are_split_over_files_and_made_one_at_a_time(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv3export.engine.plan.layout_shards.__defaults__", (1000,))
    source = Checkpoint.open(checkpoint)
    plan = [PlannedWeight(f"w{i}", "F32", (100,), (), "") for i in range(7)]
    alive: list[int] = []

    def make(weight: PlannedWeight) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        alive.append(len(alive))
        return np.full(weight.shape, int(weight.name[1:]), np.float32)

    with EngineWriter(tmp_path / "engine", checkpoint=source) as writer:
        graph = writer.write_file("graph/trunk.onnx", b"")
        table = writer.write_weights(plan, whole(plan, make))
        writer.finish(small_manifest(source, graph, table))
    files = EngineFiles.open(tmp_path / "engine", "full")
    assert [entry.name for entry in table] == [weight.name for weight in plan] and len(alive) == 7
    assert sorted({piece.file for entry in table for piece in entry.pieces}) == [
        f"weights/model-0000{i}.safetensors" for i in range(1, 5)
    ]
    assert [float(files.weight(f"w{i}")[0]) for i in range(7)] == list(range(7))


class Recorder:
    """Total and done of each bar, by title."""

    def __init__(self) -> None:
        self.bars: dict[str, list[int]] = {}
        self.title = ""

    def start(self, title: str, total: int, unit: str) -> None:
        assert title not in self.bars and unit == "bytes" and not self.title
        self.title = title
        self.bars[title] = [total, 0]

    def advance(self, amount: int) -> None:
        self.bars[self.title][1] += amount

    def finish(self) -> None:
        self.title = ""

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_counts_every_byte(tmp_path: Path, checkpoint: Path) -> None:
    source, progress = Checkpoint.open(checkpoint), Recorder()
    with EngineWriter(tmp_path / "engine", checkpoint=source) as writer:
        writer.write_weights(small_plan(source), whole(small_plan(source), produce), progress=progress)
        written = (tmp_path / "engine.partial/weights/model-00001.safetensors").stat().st_size
    assert progress.bars == {"writing weights": [written, written], "hashing weights": [written, written]}
    assert progress.title == ""


def test_no_copy_is_made_of_referenced_weights_reached_by_links(tmp_path: Path, checkpoint: Path) -> None:
    """As in the Hugging Face cache, where a snapshot's files are links to blobs outside of it."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(checkpoint.iterdir()):
        target = path.rename(blobs / f"sha-{path.name}")
        path.symlink_to(f"../blobs/{target.name}")
    build_small_engine(tmp_path / "engine", checkpoint)
    files = EngineFiles.open(tmp_path / "engine")
    assert files.entries["norm"].pieces[0].file.startswith("model-0000")
    assert files.weight("norm").shape == (256,)


def write_weights(out: Path, plan: list[PlannedWeight], produce: Produce, source: Checkpoint | None = None) -> None:
    """A build that ends after its weights, unfinished."""
    with EngineWriter(out, checkpoint=source) as writer:
        writer.write_file("graph/trunk.onnx", b"x")
        writer.write_weights(plan, whole(plan, produce))


def raising(error: BaseException) -> Produce:
    def produce(weight: PlannedWeight) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        raise error

    return produce


def test_a_failed_build_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    source = Checkpoint.open(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        write_weights(tmp_path / "a/b/engine", small_plan(source), raising(KeyboardInterrupt()), source)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_unfinished_engine_is_not_published(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as writer:
        writer.write_file("graph/trunk.onnx", b"x")
    assert list(tmp_path.iterdir()) == []


ONE_WEIGHT = [PlannedWeight("w", "F32", (2,), (), "")]


def test_an_error_in_a_producer_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^from the checkpoint's disk$"):
        write_weights(tmp_path / "engine", ONE_WEIGHT, raising(OSError("from the checkpoint's disk")))


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros(2, np.float64)])
def test_a_producer_that_breaks_its_plan_is_a_bug(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InternalError, match="was planned as F32"):
        write_weights(tmp_path / "engine", ONE_WEIGHT, lambda weight: array)


def test_a_manifest_of_files_that_were_not_written_is_a_bug(tmp_path: Path, checkpoint: Path) -> None:
    manifest = small_manifest(Checkpoint.open(checkpoint), GraphRecord("graph/trunk.onnx", "0" * 64, 0), [])
    with EngineWriter(tmp_path / "engine") as writer, pytest.raises(InternalError, match="not written"):
        writer.finish(manifest)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_existing_engine_is_replaced_only_by_force(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "engine"
    build_small_engine(target, checkpoint)
    (target / "mark").write_text("old")
    with pytest.raises(EngineError, match=r"got an engine that is already there. Use --force."):
        build_small_engine(target, checkpoint)
    assert (target / "mark").exists()
    build_small_engine(target, checkpoint, force=True)
    assert not (target / "mark").exists()
    EngineFiles.open(target, "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "engine"]


def test_a_failed_build_by_force_keeps_the_old_engine(tmp_path: Path, checkpoint: Path) -> None:
    target = tmp_path / "engine"
    build_small_engine(target, checkpoint)
    with EngineWriter(target, force=True) as writer:
        writer.write_file("graph/trunk.onnx", b"new")
    assert EngineFiles.open(target, "full").graph() == b"a graph"


def test_a_link_to_an_engine_is_followed(tmp_path: Path, checkpoint: Path) -> None:
    build_small_engine(tmp_path / "real", checkpoint)
    (tmp_path / "link").symlink_to("real")
    build_small_engine(tmp_path / "link", checkpoint, force=True)
    assert (tmp_path / "link").is_symlink()
    EngineFiles.open(tmp_path / "link", "full")


def test_an_empty_folder_may_become_an_engine(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "engine").mkdir()
    build_small_engine(tmp_path / "engine", checkpoint)
    EngineFiles.open(tmp_path / "engine")


@pytest.mark.parametrize("force", [False, True])
def test_other_files_and_folders_are_never_overwritten(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").write_text("mine")
    (tmp_path / "engine.partial").mkdir()
    (tmp_path / "engine.partial/mine").write_text("mine")
    before = contents(tmp_path)
    for name, said in [
        ("file", "output .*file: expected a new folder, got a file"),
        ("folder", "expected a new folder or an engine, got a folder with other content"),
        ("engine", r"engine.partial: expected no such file, got one that no build left behind"),
    ]:
        with pytest.raises(EngineError, match=said), EngineWriter(tmp_path / name, force=force):
            pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["checkpoint/engine", "checkpoint", "."])
def test_engine_and_checkpoint_lie_apart(tmp_path: Path, checkpoint: Path, place: str) -> None:
    before = contents(tmp_path)
    writer = EngineWriter(tmp_path / place, force=True, checkpoint=Checkpoint.open(checkpoint))
    with pytest.raises(EngineError, match="expected a folder apart from the checkpoint"), writer:
        pass
    assert contents(tmp_path) == before


def test_two_builds_of_one_engine_exclude_each_other(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "engine") as first:
        first.write_file("graph/trunk.onnx", b"mine")
        with pytest.raises(ResourceError, match="another build is writing"), EngineWriter(tmp_path / "engine"):
            pass
        assert (tmp_path / "engine.partial/graph/trunk.onnx").read_bytes() == b"mine"


SCRIPT = """
import sys
from pathlib import Path
from dsv3export.engine.writer import EngineWriter
from dsv3export.errors import UserError
from tests.engine.small_engine import build_small_engine
{before}
try:
    {action}
except UserError as error:
    print(type(error).__name__, error)
"""
BUILD = "build_small_engine(Path(sys.argv[1]), Path(sys.argv[2]))"


def run_script(root: Path, target: Path, checkpoint: Path, before: str = "", action: str = BUILD) -> str:
    command = [sys.executable, "-c", SCRIPT.format(before=before, action=action), str(target), str(checkpoint)]
    # not measured: under these limits coverage could not write its own files
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_file_size_limit_is_a_resource_error(tmp_path: Path, tiny_fp8: Path, root: Path) -> None:
    said = run_script(
        root, tmp_path / "engine", tiny_fp8, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    )
    assert said.startswith("ResourceError cannot write") and "File too large. Raise the file size limit" in said
    assert "\n" not in said and list(tmp_path.iterdir()) == []


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that any user may enter but not write to; pytest's own may only be entered by the one who runs it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_target_is_a_resource_error(public_folder: Path, tiny_fp8: Path, root: Path) -> None:
    drop = "import os; os.setuid(65534)" if os.getuid() == 0 else ""  # root may write anywhere
    said = run_script(root, public_folder / "engine", tiny_fp8, drop)
    assert said.startswith("ResourceError cannot write") and "Permission denied. Choose an output folder" in said
    assert "\n" not in said and list(public_folder.iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    plan = [PlannedWeight("w", "F32", (2**50,), (), "")]
    with pytest.raises(ResourceError, match=r"not enough disk space.*GB free, got"):
        write_weights(tmp_path / "engine", plan, produce)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_disk_that_gets_full_with_weights_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match=r"model-00001.safetensors: No space left on device. Free some space"):
        write_weights(tmp_path / "engine", ONE_WEIGHT, produce)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_gets_full_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match=r"trunk.onnx: No space left on device. Free some space"):
        write_weights(tmp_path / "engine", [], produce)
    assert list(tmp_path.iterdir()) == []


HANG = """
    with EngineWriter(Path(sys.argv[1])) as writer:
        writer.write_file("graph/trunk.onnx", b"x")
        __import__("time").sleep(60)
"""


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path: Path, checkpoint: Path, root: Path) -> None:
    target, partial = tmp_path / "engine", tmp_path / "engine.partial"
    command = [sys.executable, "-c", SCRIPT.format(before="", action=HANG), str(target), str(checkpoint)]
    with subprocess.Popen(command, cwd=root) as process:
        deadline = time.monotonic() + 60
        while not (partial / "graph/trunk.onnx").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ResourceError, match="another build is writing"), EngineWriter(target):
            pass
        process.send_signal(signal.SIGKILL)
    assert not target.exists() and contents(partial) >= {LOCK_NAME, "graph/trunk.onnx"}
    build_small_engine(target, checkpoint)
    assert not partial.exists()
    EngineFiles.open(target, "full")


def test_a_replacement_killed_half_way_is_undone_by_the_next_build(tmp_path: Path, checkpoint: Path) -> None:
    target, aside = tmp_path / "engine", tmp_path / "engine.replaced"
    build_small_engine(target, checkpoint)
    target.rename(aside)
    with pytest.raises(EngineError, match="already there"):
        build_small_engine(target, checkpoint)
    EngineFiles.open(target, "full")
    shutil.copytree(target, aside)
    build_small_engine(target, checkpoint, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "engine"]


def test_a_tokenizer_file_that_cannot_be_read_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.json").symlink_to("gone")
    with pytest.raises(TokenizerError, match=r"tokenizer.json: expected a readable file, got No such file"):
        build_small_engine(tmp_path / "engine", checkpoint)
    assert not (tmp_path / "engine").exists()


def test_a_checkpoint_without_tokenizer_is_fine(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        with contextlib.suppress(FileNotFoundError):
            (checkpoint / name).unlink()
    build_small_engine(tmp_path / "engine", checkpoint)
    assert not (tmp_path / "engine/tokenizer").exists()


def test_a_closed_writer_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="not open"):
        EngineWriter(tmp_path / "engine").write_file("x", b"")


def test_a_reference_must_be_what_the_plan_says(tmp_path: Path, checkpoint: Path, tiny_bf16: Path) -> None:
    source = Checkpoint.open(checkpoint)
    stored = source.tensors[REFERENCED]
    wrong = [PlannedWeight("w", "F32", (256,), (REFERENCED,), "as_stored", (stored,))]
    with pytest.raises(InternalError, match="has another dtype"):
        write_weights(tmp_path / "engine", wrong, produce, source)
    more = [PlannedWeight("w", stored.dtype, (256,), (REFERENCED,) * 2, "as_stored", (stored,) * 2)]
    with pytest.raises(InternalError, match="w has 512 bytes and refers to 1024"):
        write_weights(tmp_path / "engine", more, produce, source)
    right = [PlannedWeight("w", stored.dtype, (256,), (REFERENCED,), "as_stored", (stored,))]
    with pytest.raises(InternalError, match="is no file of the checkpoint"):
        write_weights(tmp_path / "engine", right, produce, Checkpoint.open(tiny_bf16))


def test_the_fingerprint_must_cover_what_weights_refer_to(tmp_path: Path, checkpoint: Path, tiny_bf16: Path) -> None:
    source, other = Checkpoint.open(checkpoint), Checkpoint.open(tiny_bf16)
    with EngineWriter(tmp_path / "engine", checkpoint=source) as writer:
        graph = writer.write_file("graph/trunk.onnx", b"")
        table = writer.write_weights(small_plan(source), whole(small_plan(source), produce))
        manifest = small_manifest(other, graph, table)
        bare = replace(manifest, checkpoint=replace(manifest.checkpoint, files={}))
        with pytest.raises(InternalError, match="fingerprint lacks files"):
            writer.finish(bare)


def test_a_tokenizer_file_of_absurd_size_is_an_error(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv3export.engine.tokenizer_files._MAX_BYTES", 1000)
    with pytest.raises(TokenizerError, match=r"tokenizer.json: expected at most 1000 bytes, got more"):
        build_small_engine(tmp_path / "engine", checkpoint)
