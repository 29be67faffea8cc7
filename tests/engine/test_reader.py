from __future__ import annotations

import json
import os
import shutil
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv3export.checkpoint import Checkpoint
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.verify import Verify
from dsv3export.errors import EngineError, InternalError, UserError
from tests.engine.small_engine import produce, small_plan, stored

WEIGHTS = "weights/model-00001.safetensors"
Damage = Callable[[Path], None]


def test_weights_come_back_as_they_were_made(engine: Path, checkpoint: Path) -> None:
    files, source = EngineFiles.open(engine, "full"), Checkpoint.open(checkpoint)
    assert files.config == source.config
    for weight in small_plan(source):
        array = files.weight(weight.name)
        expected = stored(weight, source) if weight.reference else produce(weight)
        assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes()
        assert array.shape == weight.shape and not array.flags.writeable
        assert array.flags.owndata == (len(weight.reference) > 1)
    assert files.graph() == b"a graph"


def test_a_weight_in_pieces_is_put_together_once(engine: Path) -> None:
    files = EngineFiles.open(engine)
    bank = files.weight("bank")
    assert files.weight("bank") is bank
    files.release_pages()
    content, alive = bank.tobytes(), weakref.ref(bank)
    del bank
    assert alive() is None
    assert files.weight("bank").tobytes() == content


def test_pieces_that_touch_are_mapped(engine: Path) -> None:
    def change(document: Any) -> None:
        ((offset, nbytes),) = document["weights"][2]["pieces"][0]["ranges"]
        document["weights"][2]["pieces"][0]["ranges"] = [[offset, 40], [offset + 40, nbytes - 40]]

    edit(engine, change)
    matrix = EngineFiles.open(engine).weight("matrix")
    assert not matrix.flags.owndata and np.array_equal(matrix, np.arange(24, dtype=np.float32).reshape(4, 6))


@pytest.mark.parametrize("damage", [lambda shard: os.truncate(shard, 40_000), Path.unlink])
def test_a_checkpoint_cut_after_it_was_checked_is_noticed(engine: Path, damage: Callable[[Path], None]) -> None:
    files = EngineFiles.open(engine)
    damage(files.path.parent / "checkpoint" / files.entries["bank"].pieces[-1].file)
    with pytest.raises(EngineError, match=r"it was cut just now|expected a readable file, got No such file"):
        files.weight("bank")


def test_weights_can_be_read_after_their_pages_were_released(engine: Path) -> None:
    files = EngineFiles.open(engine)
    before = files.weight("matrix")
    copy = before.copy()
    files.release_pages()
    assert np.array_equal(before, copy)


def test_an_engine_may_be_moved_or_reached_by_a_link(engine: Path, tmp_path: Path) -> None:
    engine.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("moved")
    for path in (tmp_path / "moved", tmp_path / "link"):
        assert EngineFiles.open(str(path)).weight("bytes").shape == (3, 5)


def test_a_copy_with_new_times_is_hashed_and_accepted(engine: Path, tmp_path: Path) -> None:
    shutil.copytree(engine, tmp_path / "copy", copy_function=shutil.copyfile)
    assert EngineFiles.open(tmp_path / "copy").weight("bytes").shape == (3, 5)


def test_unknown_names_are_bugs_or_damage(engine: Path) -> None:
    files = EngineFiles.open(engine)
    with pytest.raises(InternalError):
        files.weight("nope")
    with pytest.raises(EngineError, match="graphs: expected 'decode', got none"):
        files.graph("decode")


def edit(engine: Path, change: Callable[[Any], object]) -> None:
    document = json.loads((engine / "engine.json").read_text())
    change(document)
    (engine / "engine.json").write_text(json.dumps(document))


def set_weight(index: int, **values: object) -> Damage:
    return lambda engine: edit(engine, lambda document: document["weights"][index].update(values))


def set_file(index: int, file: str) -> Damage:
    return lambda engine: edit(engine, lambda document: document["weights"][index]["pieces"][0].update(file=file))


def set_range(index: int, offset: int | None = None, nbytes: int | None = None, piece: int = 0) -> Damage:
    def change(document: Any) -> None:
        place = document["weights"][index]["pieces"][0]["ranges"][piece]
        place[:] = [place[0] if offset is None else offset, place[1] if nbytes is None else nbytes]

    return lambda engine: edit(engine, change)


def repeat_piece(document: Any) -> None:
    """The bank's second expert is the first one again, a few bytes on."""
    ranges = document["weights"][4]["pieces"][0]["ranges"]
    ranges[1][0] = ranges[0][0] + 16


def empty_piece(document: Any) -> None:
    document["weights"][4]["pieces"][0]["ranges"].insert(1, [4096, 0])


def drop_piece(document: Any) -> None:
    document["weights"][4]["pieces"][0]["ranges"].pop()


def flip(path: Path, position: int = -1, seconds: int = 0) -> None:
    """Changes one bit; the modification time becomes now + `seconds`."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    os.utime(path, (time.time(), time.time() + seconds))


def truncate(path: Path, count: int = 1) -> None:
    os.truncate(path, path.stat().st_size - count)


def replace_by_file(engine: Path) -> None:
    shutil.rmtree(engine)
    engine.write_text("x")


def replace_by_checkpoint(engine: Path) -> None:
    shutil.rmtree(engine)
    (engine.parent / "checkpoint").rename(engine)


def rename_file_key(old: str, new: str) -> Callable[[Path], None]:
    def change(document: Any) -> None:
        document["files"][new] = document["files"].pop(old)
        for run in (run for entry in document["weights"] for run in entry["pieces"]):
            run["file"] = new if run["file"] == old else run["file"]

    return lambda engine: edit(engine, change)


def use_checkpoint_file(name: str) -> Callable[[Path], None]:
    def change(document: Any) -> None:
        shards = document["checkpoint"]["fingerprint"]["files"]
        shards[name] = next(iter(shards.values()))
        document["weights"][1]["pieces"][0]["file"] = name

    return lambda engine: edit(engine, change)


def replace_by_link(engine: Path) -> None:
    (engine / "weights").rename(engine.parent / "outside")
    (engine / "weights").symlink_to("../outside")


def replace_by_pipe(engine: Path) -> None:
    (engine / WEIGHTS).unlink()
    os.mkfifo(engine / WEIGHTS)


def first_shard(engine: Path) -> Path:
    entry = json.loads((engine / "engine.json").read_text())["weights"][1]
    return engine.parent / "checkpoint" / str(entry["pieces"][0]["file"])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (shutil.rmtree, r"engine: expected a directory written by `dsv3export build`, got nothing there"),
    "no manifest": (lambda e: (e / "engine.json").unlink(), "got a folder without engine.json"),
    "a file": (replace_by_file, "got a file"),
    "a checkpoint": (replace_by_checkpoint, "got a checkpoint. Build an engine from it first: dsv3export build"),
    "manifest cut": (lambda e: truncate(e / "engine.json", 2), "engine.json: expected JSON"),
    "manifest no text": (lambda e: (e / "engine.json").write_bytes(b"\xff\xfe"), "engine.json: expected JSON"),
    "manifest empty": (lambda e: (e / "engine.json").write_text("{}"), 'expected "format": "dsv3export-engine", got'),
    "other version": (lambda e: edit(e, lambda d: d.update(version=1)), "expected engine format version 2, got 1"),
    "other model": (lambda e: edit(e, lambda d: d["model"].update(model_type="llama")), "llama"),
    "layers that the model lacks": (
        lambda e: edit(e, lambda d: d.update(layers=[2, 4])),
        r"engine.json: layers: expected layers below num_hidden_layers \(4\), got 4",
    ),
    "graph altered": (lambda e: flip(e / "graph/trunk.onnx"), "trunk.onnx: sha256: expected"),
    "graph cut": (lambda e: truncate(e / "graph/trunk.onnx"), "trunk.onnx: size in bytes: expected 7, got 6"),
    "graph gone": (lambda e: (e / "graph/trunk.onnx").unlink(), "trunk.onnx: expected a file, got No such file"),
    "graph elsewhere": (
        lambda e: edit(e, lambda d: d["graphs"]["trunk"].update(file="../checkpoint/config.json")),
        "graphs.trunk.file: expected a relative path below the engine",
    ),
    "weights altered": (lambda e: flip(e / WEIGHTS), "model-00001.safetensors: sha256: expected"),
    "weights header altered": (lambda e: flip(e / WEIGHTS, 20), "model-00001.safetensors: sha256: expected"),
    "weights cut": (lambda e: truncate(e / WEIGHTS), "model-00001.safetensors: size in bytes: expected"),
    "weights gone": (lambda e: (e / WEIGHTS).unlink(), "model-00001.safetensors: expected a file, got No such file"),
    "weights a pipe": (replace_by_pipe, "model-00001.safetensors: expected a regular file"),
    "weights linked out": (replace_by_link, "a link that leaves it"),
    "tokenizer altered": (lambda e: flip(e / "tokenizer/tokenizer.json", 99), "tokenizer.json: sha256: expected"),
    "weights path escapes": (rename_file_key(WEIGHTS, "../checkpoint/config.json"), "expected a relative path below"),
    "weights path absolute": (rename_file_key(WEIGHTS, "/etc/passwd"), "expected a relative path below"),
    "file not vouched for": (set_file(0, "engine.json"), "expected a file of the manifest, got 'engine.json'"),
    "offset out of bounds": (set_range(0, 10**6), "weight 'bytes': expected bytes within the"),
    "offset huge": (set_range(0, 2**63 - 1), "weight 'bytes': expected bytes within the"),
    "offset negative": (set_range(0, -8), r"ranges\[0\]\[0\]: expected an integer from 0"),
    "nbytes lies": (set_range(0, nbytes=14), "weight 'bytes': nbytes: expected 15, got 14"),
    "shape lies": (set_weight(2, shape=[4, 7]), "weight 'matrix': nbytes: expected 112, got 96"),
    "shape huge": (set_weight(2, shape=[2**62] * 8), "weight 'matrix': nbytes: expected"),
    "dtype unknown": (set_weight(0, dtype="F13"), "weight 'bytes': dtype: expected F64 F32"),
    "name twice": (set_weight(0, name="norm"), "weight 'norm': expected each name once"),
    "weight in the header": (set_range(0, 8), "weight 'bytes': expected bytes behind the header of weights/model-0000"),
    "piece in the header": (set_range(4, 16, piece=2), "weight 'bank': expected bytes behind the header of model-0000"),
    "piece out of bounds": (set_range(4, 2**40, piece=3), "weight 'bank': expected bytes within the"),
    "pieces overlap": (lambda e: edit(e, repeat_piece), "weight 'bank': expected each byte of model-.* once, got"),
    "an empty piece": (lambda e: edit(e, empty_piece), "weight 'bank': expected pieces of at least a byte"),
    "a piece too few": (lambda e: edit(e, drop_piece), "weight 'bank': nbytes: expected "),
    "no pieces": (set_weight(3, shape=[0], pieces=[]), "weight 'scalar': pieces: expected at least one, got none"),
    "checkpoint offset out of bounds": (set_range(1, 2**40), "weight 'norm': expected bytes within the"),
    "checkpoint file unknown": (set_file(1, "x.safetensors"), "weight 'norm': file: expected a file"),
    "checkpoint path escapes": (use_checkpoint_file("../x.safetensors"), "expected file names inside the checkpoint"),
    "checkpoint moved": (lambda e: (e.parent / "checkpoint").rename(e.parent / "c2"), "expected the folder that the"),
    "checkpoint shard gone": (lambda e: first_shard(e).unlink(), "got No such file.*Put the checkpoint back"),
    "checkpoint shard cut": (lambda e: truncate(first_shard(e)), "size in bytes: expected"),
    "checkpoint header altered": (lambda e: flip(first_shard(e), 40), "sha256 of the header: expected"),
    "checkpoint weights altered": (
        lambda e: flip(first_shard(e), seconds=100),
        "expected the file as it was when the engine was built, got one modified since then",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_engines_are_refused_in_one_line(engine: Path, case: str) -> None:
    damage, said = BAD[case]
    damage(engine)
    with pytest.raises(UserError, match=said) as caught:
        EngineFiles.open(engine)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_refused_in_every_file(built: Path, data: st.DataObject) -> None:
    """In engine.json, which nothing vouches for, it may also pass, e.g. in the producer's name; it never does worse."""
    paths = sorted(path for path in (built / "engine").rglob("*") if path.is_file())
    path = data.draw(st.sampled_from([*paths, *[built / "engine/engine.json"] * 8]))
    original, status = path.read_bytes(), path.stat()
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(changed)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(UserError) if path.name != "engine.json" else suppress(UserError):
            EngineFiles.open(built / "engine")
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["trunk.onnx", "model-00001.safetensors"])
def test_an_unreadable_file_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened = Path.open

    def fail(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(5, "Input/output error")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(EngineError, match=rf"{name}: expected a readable file, got Input/output error"):
        EngineFiles.open(engine, "full")


@pytest.mark.parametrize(("verify", "noticed"), [("auto", False), ("full", True)])
def test_only_full_verification_sees_a_change_that_kept_the_time(engine: Path, verify: Verify, noticed: bool) -> None:
    status = (engine / WEIGHTS).stat()
    flip(engine / WEIGHTS)
    os.utime(engine / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    if noticed:
        with pytest.raises(EngineError, match="sha256"):
            EngineFiles.open(engine, verify)
    else:
        EngineFiles.open(engine, verify)


def test_a_checkpoint_that_nothing_refers_to_may_go(engine: Path, checkpoint: Path) -> None:
    edit(engine, lambda document: document.update(weights=document["weights"][:1]))
    shutil.rmtree(checkpoint)
    assert EngineFiles.open(engine).weight("bytes").shape == (3, 5)


def test_a_missing_tokenizer_does_not_matter_here(engine: Path) -> None:
    (engine / "tokenizer/tokenizer.json").unlink()
    EngineFiles.open(engine)


@pytest.mark.parametrize(("size", "said"), [(80, "it was cut just now"), (0, "expected a readable file")])
def test_a_file_cut_after_it_was_checked_is_noticed(engine: Path, size: int, said: str) -> None:
    files = EngineFiles.open(engine)
    os.truncate(engine / WEIGHTS, size)
    with pytest.raises(EngineError, match=said):
        files.weight("matrix")
