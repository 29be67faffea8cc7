from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3export.engine.reader import EngineFiles
from dsv3export.errors import BackendError, EngineError, RequestError, TokenizerError, UserError
from dsv3export.runtime.engine import Engine
from dsv3export.runtime.generation import GenerationResult, prompt_logits
from tests.runtime.toy_model import ToySession, build_toy_engine

EditableEngine = Callable[..., Path]


@pytest.fixture
def changed_engine(tmp_path: Path, tiny_fp8: Path) -> EditableEngine:
    """Builds an engine from a checkpoint in which one file was replaced (None: left out)."""

    def build(name: str, content: object) -> Path:
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(tiny_fp8, checkpoint)
        (checkpoint / name).unlink()
        if content is not None:
            (checkpoint / name).write_text(json.dumps(content))
        build_toy_engine(tmp_path / "engine", checkpoint)
        return tmp_path / "engine"

    return build


def test_logits(toy_engine: Engine) -> None:
    ids = [0, 5, 7, 100, 3, 2047]
    logits = toy_engine.logits(ids)
    assert logits.shape == (6, 2048) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, prompt_logits(ToySession(2048), ids), atol=1e-4)
    assert np.array_equal(toy_engine.logits(np.array(ids, np.int32)), logits)


def test_generates_from_text_as_from_its_ids(toy_engine: Engine) -> None:
    text = "And it came to pass"
    result = toy_engine.generate(text, max_new_tokens=12)
    assert toy_engine.tokenizer is not None
    assert result.prompt_token_ids == toy_engine.tokenizer.encode(text)
    assert len(result.token_ids) == 12 and result.finish_reason == "length"
    assert result.text == toy_engine.tokenizer.decode(result.token_ids)
    assert toy_engine.generate(result.prompt_token_ids, 12) == result


def test_a_list_gives_a_list(toy_engine: Engine) -> None:
    texts = ["The", "And it came to pass in the days", "a"]
    results = toy_engine.generate(texts, max_new_tokens=5)
    assert results == [toy_engine.generate(text, max_new_tokens=5) for text in texts]
    assert results == toy_engine.generate([result.prompt_token_ids for result in results], max_new_tokens=5)
    assert isinstance(toy_engine.generate([[0, 1]], max_new_tokens=1), list)


def test_sampled_results_are_the_same_beside_any_other_prompt(toy_engine: Engine) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 4,
    }
    alone = toy_engine.generate("The", **options)
    assert toy_engine.generate(["The", "And the LORD", "x"], **options)[0] == alone
    assert alone == toy_engine.generate("The", **options) != toy_engine.generate("The", **(options | {"seed": 5}))


def test_stream_is_generate_in_pieces(toy_engine: Engine) -> None:
    whole = toy_engine.generate("The", max_new_tokens=20)
    pieces = list(toy_engine.stream("The", max_new_tokens=20))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == whole.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 19 + ["length"]


def test_a_stop_string_may_span_tokens(toy_engine: Engine) -> None:
    whole = toy_engine.generate("The", max_new_tokens=20)
    assert toy_engine.tokenizer is not None
    first = toy_engine.tokenizer.decode(whole.token_ids[:4])
    stop = whole.text[len(first) - 1 : len(first) + 2]
    result = toy_engine.generate("The", max_new_tokens=20, stop=["@@@", stop])
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    streamed = "".join(piece.text for piece in toy_engine.stream("The", max_new_tokens=20, stop=stop))
    assert streamed == result.text


def test_text_held_back_for_a_stop_string_comes_at_the_end(toy_engine: Engine) -> None:
    whole = toy_engine.generate("The", max_new_tokens=6)
    held = toy_engine.generate("The", max_new_tokens=6, stop=whole.text[-2:] + "\0")
    assert held == whole


def generated_token(engine: Engine, place: int) -> int:
    return engine.generate("The", max_new_tokens=place + 1).token_ids[place]


@pytest.mark.parametrize("as_list", [True, False])
def test_generation_stops_at_the_eos_of_generation_config(
    toy_engine: Engine, changed_engine: EditableEngine, as_list: bool
) -> None:
    eos = generated_token(toy_engine, 3)
    path = changed_engine("generation_config.json", {"eos_token_id": [2, eos] if as_list else eos})
    engine = Engine.load(path, threads=1)
    assert engine.eos_ids == ({1, 2, eos} if as_list else {1, eos})  # 1 is config.json's
    result = engine.generate("The", max_new_tokens=9)
    assert result.finish_reason == "stop" and result.token_ids[-1] == eos
    assert len(result.token_ids) <= 4
    assert engine.tokenizer is not None and result.text == engine.tokenizer.decode(result.token_ids[:-1])
    ignored = engine.generate("The", max_new_tokens=9, ignore_eos=True)
    assert ignored == toy_engine.generate("The", max_new_tokens=9)


@pytest.mark.parametrize("content", [[], {"eos_token_id": "1"}, {"eos_token_id": [1, -1]}, {"eos_token_id": True}])
def test_a_bad_generation_config_is_refused(changed_engine: EditableEngine, content: object) -> None:
    engine = Engine.load(changed_engine("generation_config.json", content), threads=1)
    with pytest.raises(EngineError, match="generation_config"):
        engine.generate([1], max_new_tokens=1)


def test_without_generation_config_the_config_decides(changed_engine: EditableEngine) -> None:
    assert Engine.load(changed_engine("generation_config.json", None), threads=1).eos_ids == {1}


def test_an_engine_without_tokenizer_runs_on_ids(toy_engine: Engine, changed_engine: EditableEngine) -> None:
    engine = Engine.load(changed_engine("tokenizer.json", None), threads=1)
    assert engine.tokenizer is None
    result = engine.generate([0, 455], max_new_tokens=4)
    assert result.text == "" and result.token_ids == toy_engine.generate([0, 455], max_new_tokens=4).token_ids
    with pytest.raises(TokenizerError, match="expected a tokenizer, as the prompt is text, got none"):
        engine.generate("The")
    with pytest.raises(RequestError, match="stop: expected no stop strings"):
        engine.generate([0], stop="x")


def test_a_tokenizer_that_was_deleted_is_missed_when_it_is_needed(toy_engine_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine"
    shutil.copytree(toy_engine_path, path)
    (path / "tokenizer" / "tokenizer.json").unlink()
    engine = Engine.load(path, threads=1)
    assert engine.logits([1]).shape == (1, 2048)
    with pytest.raises(TokenizerError, match=r"tokenizer.json: expected a readable file"):
        engine.generate("The")


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([], {}, "prompt: expected at least one token, got none"),
        ([[1], []], {}, "prompt: expected at least one token, got none"),
        ([0, 2048], {}, "token id 1 of the prompt: expected an integer from 0 to 2047, got 2048"),
        ([-1], {}, "token id 0 of the prompt: expected an integer from 0 to 2047, got -1"),
        ([True], {}, "got True"),
        ([1.5], {}, "got 1.5"),
        (["a", 3], {}, "got 3"),
        (
            [1] * 1000,
            {"max_new_tokens": 25},
            r"at most 1024 tokens \(the model's max_position_embeddings\), got 1000 \+ 25",
        ),
        ([1] * 1024, {}, r"got 1024 \+ 1 = 1025"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens: expected an integer of at least 1, got 0"),
        ([1], {"stop": ""}, "stop: expected strings that are not empty"),
        ([1], {"stop": ["a", ""]}, "stop: expected strings that are not empty"),
        ([1], {"temperature": -1}, "temperature: expected >= 0, got -1"),
        ([1], {"top_p": 2}, "top_p"),
    ],
)
def test_requests_out_of_range_are_refused(toy_engine: Engine, prompt: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        toy_engine.generate(prompt, **options)
    if not (prompt and isinstance(prompt[0], (list, str))):
        with pytest.raises(RequestError, match=said):
            toy_engine.stream(prompt, **options)


def test_the_default_number_of_tokens_fits_the_context(toy_engine: Engine) -> None:
    assert len(toy_engine.generate([1] * 1020, ignore_eos=True).token_ids) == 4
    assert len(toy_engine.generate([1], ignore_eos=True).token_ids) == 128


def test_logits_of_too_long_a_sequence_are_refused(toy_engine: Engine) -> None:
    assert len(toy_engine.logits([1] * 1024)) == 1024
    with pytest.raises(RequestError, match="at most 1024 tokens"):
        toy_engine.logits([1] * 1025)


def test_a_smaller_capacity_can_be_asked_for(toy_engine_path: Path) -> None:
    engine = Engine.load(toy_engine_path, threads=1, capacity=10)
    assert len(engine.generate([1] * 4, max_new_tokens=6, ignore_eos=True).token_ids) == 6
    with pytest.raises(RequestError, match=r"at most 10 tokens \(the capacity asked for\), got 4 \+ 7 = 11"):
        engine.generate([1] * 4, max_new_tokens=7)


def test_more_prompts_than_slots_wait_for_a_free_one(toy_engine: Engine, toy_engine_path: Path) -> None:
    narrow = Engine.load(toy_engine_path, threads=1, max_batch=2, prefill_chunk=3)
    prompts = [[i] * (i + 1) for i in range(7)]
    assert narrow.generate(prompts, max_new_tokens=5) == toy_engine.generate(prompts, max_new_tokens=5)


@pytest.mark.parametrize("option", ["threads", "max_batch", "capacity", "prefill_chunk"])
def test_load_options_must_be_positive(toy_engine_path: Path, option: str) -> None:
    with pytest.raises(RequestError, match=f"{option}: expected at least 1, got 0"):
        Engine.load(toy_engine_path, **{option: 0})  # type: ignore[arg-type]


def test_another_backend_is_refused_by_name(toy_engine_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine"
    shutil.copytree(toy_engine_path, path)
    text = (path / "engine.json").read_text()
    (path / "engine.json").write_text(text.replace('"name": "onnxruntime"', '"name": "openvino"'))
    assert EngineFiles.open(path).manifest.backend.name == "openvino"
    with pytest.raises(BackendError, match="expected onnxruntime, tensorrt-rtx or tensorrt, got 'openvino'"):
        Engine.load(path)


def test_errors_are_one_line(toy_engine: Engine) -> None:
    with pytest.raises(UserError) as caught:
        toy_engine.generate([99999])
    assert "\n" not in str(caught.value)


def test_runs_without_torch_onnx_or_transformers(toy_engine_path: Path, root: Path) -> None:
    script = (
        "import sys; from dsv3export import Engine; "
        f"print(Engine.load({str(toy_engine_path)!r}, threads=1).generate('The', max_new_tokens=2).token_ids); "
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'transformers', 'safetensors'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


def test_a_missing_backend_package_is_named(toy_engine_path: Path, root: Path) -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from dsv3export import Engine, UserError\n"
        f"try: Engine.load({str(toy_engine_path)!r})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert "pip install 'dsv3export[cpu]'" in done.stdout


def test_the_result_is_plain_data(toy_engine: Engine) -> None:
    result = toy_engine.generate(np.array([1, 2]), max_new_tokens=2)
    assert isinstance(result, GenerationResult)
    assert json.dumps([result.token_ids, result.prompt_token_ids, result.text, result.finish_reason])
