"""Each fault of a checkpoint folder gives one clear error that names the file and the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.errors import CheckpointError, ConfigError, UserError
from tests.support.synthetic import random_checkpoint, tiny_config, write_shards

Arrays = dict[str, Any]

Q_A = "model.layers.0.self_attn.q_a_proj.weight"
GATE = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"


@pytest.fixture(scope="module")
def good_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(num_nextn_predict_layers=1)
    return random_checkpoint(tmp_path_factory.mktemp("good") / "fp8", config, 1, "FP8", shards=2)


@pytest.fixture
def fp8(tmp_path: Path, good_fp8: Path) -> Path:
    """A copy to spoil: two shards, 2 layers and an MTP layer."""
    return shutil.copytree(good_fp8, tmp_path / "fp8")


def rewrite(path: Path, change: Callable[[Arrays], object]) -> None:
    """Stores the tensors of the checkpoint again, after `change`, in one file."""
    checkpoint = Checkpoint.open(path)
    arrays = {name: np.array(checkpoint.array(name)) for name in checkpoint.tensors}
    change(arrays)
    for file in [*path.glob("*.safetensors"), path / INDEX]:
        file.unlink()
    write_shards(path, [arrays])


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def message(path: Path, kind: type[UserError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        Checkpoint.open(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def cast(name: str, dtype: object) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})


def put(name: str, array: object) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: array})


def drop(*starts: str) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        for name in [name for name in arrays if name.startswith(starts)]:
            del arrays[name]

    return change


ONES = np.ones((1, 1), np.float32)

BAD_TENSORS: list[tuple[str, Callable[[Arrays], object], list[str]]] = [
    ("missing", drop(BIAS), ["missing tensors", f'"{BIAS}"']),
    ("missing expert", drop("model.layers.1.mlp.experts.3."), ["experts.3.gate_proj", "experts.3.down_proj.weight"]),
    ("many missing", drop("model.layers.1.mlp.experts."), ["experts.0.down_proj", " and 21 more"]),
    ("no MTP layer", drop("model.layers.2."), ["missing tensors", "set num_nextn_predict_layers to 0"]),
    ("half an MTP layer", drop("model.layers.2.eh_proj"), ['missing tensors: "model.layers.2.eh_proj.weight"']),
    ("surplus", put("model.extra", ONES), ["the config has no place for", '"model.extra"', "model.safetensors"]),
    ("surplus layer", put("model.layers.7.x", ONES), ['"model.layers.7.x"', "MTP layers included, is layer 2"]),
    ("surplus expert", put("model.layers.1.mlp.experts.8.up_proj.weight", ONES), ["experts.8.up_proj.weight"]),
    ("surplus bias", put("model.layers.0.self_attn.o_proj.bias", ONES[0]), ["o_proj.bias"]),
    ("scale of nothing", put("model.nothing.weight_scale_inv", ONES), ["model.nothing.weight_scale_inv"]),
    ("wrong shape", put(Q_A, np.ones((28, 47), np.float32)), [Q_A, "wrong shape: expected [28, 48], got [28, 47]"]),
    ("transposed", lambda a: a.update({Q_A: a[Q_A].T.copy()}), ["wrong shape: expected [28, 48], got [48, 28]"]),
    ("wrong rank", put(BIAS, np.ones((1, 8), np.float32)), [BIAS, "expected [8], got [1, 8]"]),
    (
        "integers",
        cast("model.norm.weight", np.int64),
        ['"model.norm.weight": wrong dtype', "BF16 or F16 or F32", "I64"],
    ),
    ("FP8 embedding", cast("model.embed_tokens.weight", ml_dtypes.float8_e4m3fn), ["got F8_E4M3", "embed_tokens"]),
    ("FP8 router", cast(GATE, ml_dtypes.float8_e4m3fn), [GATE, "expected BF16 or F16 or F32, got F8_E4M3"]),
    ("FP8 norm", cast("model.norm.weight", ml_dtypes.float8_e4m3fn), ["model.norm.weight", "got F8_E4M3"]),
    ("no scale", drop(f"{Q_A}_scale_inv"), ["missing scales of FP8 weights", f'"{Q_A}_scale_inv"']),
    ("scale without FP8", cast(Q_A, np.float32), ["scales of weights that are not FP8", f'"{Q_A}_scale_inv"']),
    ("scale of a norm", put("model.norm.weight_scale_inv", ONES), ["not FP8", "model.norm.weight_scale_inv"]),
    ("shape of a scale", put(f"{Q_A}_scale_inv", np.ones((1, 2), np.float32)), ["expected [1, 1], got [1, 2]"]),
    ("dtype of a scale", cast(f"{Q_A}_scale_inv", ml_dtypes.bfloat16), ["wrong dtype: expected F32, got BF16"]),
]


@pytest.mark.parametrize(("change", "says"), [case[1:] for case in BAD_TENSORS], ids=[case[0] for case in BAD_TENSORS])
def test_bad_tensors(fp8: Path, change: Callable[[Arrays], object], says: list[str]) -> None:
    rewrite(fp8, change)
    text = message(fp8)
    assert str(fp8) in text
    assert [part for part in says if part not in text] == [], text


def test_several_tensors_of_one_fault_are_summarised(fp8: Path) -> None:
    edit_json(fp8 / "config.json", lambda config: config.update(hidden_size=50))
    text = message(fp8)
    assert '"model.embed_tokens.weight": wrong shape: expected [97, 50], got [97, 48]. The same holds of "' in text
    assert " more" in text


def test_fp8_weights_need_a_quantization_config(fp8: Path) -> None:
    edit_json(fp8 / "config.json", lambda config: config.pop("quantization_config"))
    assert "got F8_E4M3, and config.json has no quantization_config" in message(fp8)


def test_mtp_tensors_that_the_config_does_not_know(fp8: Path) -> None:
    edit_json(fp8 / "config.json", lambda config: config.update(num_nextn_predict_layers=0))
    text = message(fp8)
    assert '"model.layers.2.' in text
    assert "By config.json the last layer, MTP layers included, is layer 1" in text


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..", ""])
@pytest.mark.parametrize("there", [True, False])
def test_index_paths_that_leave_the_folder(fp8: Path, name: str, there: bool) -> None:
    if there:
        shutil.copy(fp8 / FIRST, fp8.parent / "x.safetensors")
    edit_json(fp8 / INDEX, lambda index: index["weight_map"].update({Q_A: name}))
    text = message(fp8)
    assert f'{INDEX}: weight_map: "{Q_A}": expected the name of a .safetensors file in the same folder' in text


BAD_NAMES = [
    "pytorch_model.bin",
    "a\0.safetensors",
    "\ud800.safetensors",
    "a\\b.safetensors",
    "x" * 300 + ".safetensors",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, 1, None, ["x"], "a\nb.safetensors"], ids=ascii)
def test_index_values_that_are_no_file_names(fp8: Path, name: object) -> None:
    edit_json(fp8 / INDEX, lambda index: index["weight_map"].update({Q_A: name}))
    assert "expected the name of a .safetensors file in the same folder" in message(fp8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "expected valid JSON"),
        ("[]", "expected a JSON object {...}, got a JSON array"),
        ("{}", "weight_map: expected a JSON object, tensor name to file name, got no such key"),
        ('{"weight_map": []}', "got []"),
        ('{"weight_map": {}}', "got {}"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', 'got the key "a" twice'),
        ('{"weight_map": {"a": "x.safetensors"}}', 'names files that do not exist: "x.safetensors"'),
    ],
)
def test_bad_indexes(fp8: Path, data: str, says: str) -> None:
    (fp8 / INDEX).write_text(data)
    text = message(fp8)
    assert str(fp8 / INDEX) in text
    assert says in text


def test_a_missing_shard(fp8: Path) -> None:
    (fp8 / SECOND).unlink()
    assert f'names files that do not exist: "{SECOND}"' in message(fp8)


def test_a_shard_that_is_a_link_to_nothing(fp8: Path) -> None:
    (fp8 / SECOND).unlink()
    (fp8 / SECOND).symlink_to("../../blobs/0123")
    assert f'names files that do not exist: "{SECOND}"' in message(fp8)


def test_a_single_file_that_is_a_link_to_nothing(fp8: Path) -> None:
    (fp8 / "model.safetensors").symlink_to("../../blobs/0123")
    assert "model.safetensors: expected a file, got a symbolic link to a file that does not exist" in message(fp8)


def test_a_shard_that_is_a_folder(fp8: Path) -> None:
    (fp8 / FIRST).unlink()
    (fp8 / FIRST).mkdir()
    assert f"{FIRST}: expected a file, got a directory" in message(fp8)


def test_a_truncated_shard(fp8: Path) -> None:
    data = (fp8 / FIRST).read_bytes()
    (fp8 / FIRST).write_bytes(data[:-100])
    text = message(fp8)
    assert f"{fp8 / FIRST}: the file is truncated: " in text
    assert f"expected {len(data)} bytes, got {len(data) - 100}" in text


def test_an_index_that_is_wrong_about_the_files(fp8: Path) -> None:
    edit_json(fp8 / INDEX, lambda index: index["weight_map"].update({"model.embed_tokens.weight": SECOND}))
    text = message(fp8)
    assert f'{SECOND}: missing tensors that {INDEX} says are in it: "model.embed_tokens.weight"' in text


def test_a_tensor_that_the_index_leaves_out(fp8: Path) -> None:
    edit_json(fp8 / INDEX, lambda index: index["weight_map"].pop("model.embed_tokens.weight"))
    text = message(fp8)
    assert f'{FIRST}: tensors that {INDEX} does not say are in it: "model.embed_tokens.weight"' in text


def test_a_tensor_in_two_shards(fp8: Path) -> None:
    shutil.copy(fp8 / FIRST, fp8 / "copy.safetensors")
    edit_json(fp8 / INDEX, lambda index: index["weight_map"].update({"model.embed_tokens.weight": "copy.safetensors"}))
    assert "tensors that model.safetensors.index.json does not say are in it" in message(fp8)


def test_no_folder(tmp_path: Path) -> None:
    assert "expected a checkpoint folder, got nothing there" in message(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "expected a checkpoint folder, got a file" in message(tmp_path / "file")
    assert "expected a checkpoint folder" in message(Path("x" * 300))
    assert "expected a checkpoint folder" in message(Path("a\0b"))


def test_no_config(fp8: Path) -> None:
    (fp8 / "config.json").unlink()
    assert "config.json: expected a file, got nothing there" in message(fp8, ConfigError)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", "Pickled weights are never loaded"),
        (FIRST, "The shards' model.safetensors.index.json is missing"),
        ("README.md", "Is this the folder of a Hugging Face checkpoint?"),
    ],
)
def test_no_weights(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / name).write_text("")
    text = message(tmp_path)
    assert f"{tmp_path}: expected model.safetensors or {INDEX}, got neither" in text
    assert says in text


@pytest.mark.parametrize("change", ["value", "dtype"])
def test_a_tied_head_that_is_another(tmp_path: Path, change: str) -> None:
    path = random_checkpoint(tmp_path / "c", tiny_config(tie_word_embeddings=True), 1)
    embedding = np.array(Checkpoint.open(path).array("model.embed_tokens.weight"))
    head = embedding.copy() if change == "value" else embedding.astype(ml_dtypes.bfloat16)
    head[-1, -1] += 1
    arrays = {name: np.array(Checkpoint.open(path).array(name)) for name in Checkpoint.open(path).tensors}
    write_shards(path, [{**arrays, "lm_head.weight": head}])
    text = message(path)
    assert '"lm_head.weight": expected the same bytes as model.embed_tokens.weight, got others' in text
    assert "Set tie_word_embeddings to false" in text
