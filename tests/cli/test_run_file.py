"""`dsv3export run --input-file`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3export import Engine
from tests.support.command_line import assert_refused, run_here

PROMPTS = ["And it came to pass", "In the beginning", "Now these are the names", "Praise ye the LORD", "Thus saith"]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Engine:
    return Engine.load(tiny_engine, threads=1)


def test_results_come_in_order(tiny_engine: Path, tmp_path: Path, engine: Engine) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS) + "\n")
    outcome = run_here("run", tiny_engine, "--input-file", file, "--max-new-tokens", "9", "--batch", "2")
    assert (outcome.code, outcome.err) == (0, "")
    found = records(outcome.out)
    expected = engine.generate(PROMPTS, 9)
    assert [each["index"] for each in found] == list(range(5))
    assert [each["text"] for each in found] == [each.text for each in expected]
    assert [each["token_ids"] for each in found] == [each.token_ids for each in expected]
    for each, result in zip(found, expected, strict=True):
        assert (each["prompt_tokens"], each["completion_tokens"]) == (len(result.prompt_token_ids), 9)
        assert each["finish_reason"] == "length"


def test_a_seed_gives_the_same_whatever_the_batch(tiny_engine: Path, tmp_path: Path, engine: Engine) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    sampled = ("--temperature", "0.9", "--seed", "4", "--max-new-tokens", "12")
    outcomes = [
        run_here("run", tiny_engine, "--input-file", file, *sampled, "--batch", batch).out for batch in ("1", "3", "16")
    ]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    expected = engine.generate(PROMPTS, 12, temperature=0.9, seed=4)
    assert [each["text"] for each in records(outcomes[0])] == [each.text for each in expected]


def test_objects_have_options_of_their_own(tiny_engine: Path, tmp_path: Path, engine: Engine) -> None:
    asked: list[dict[str, Any]] = [
        {"id": "a", "prompt": PROMPTS[0], "max_new_tokens": 3},
        {"id": 7, "prompt_token_ids": [0, 12, 7], "stop": "ZZ", "logprobs": 2},
        {"messages": [{"role": "user", "content": "And then?"}], "temperature": 0.5, "seed": 3},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in asked))
    found = records(run_here("run", tiny_engine, "--input-file", file, "--max-new-tokens", "5").out)
    assert [each.get("id") for each in found] == ["a", 7, None]
    assert [each["completion_tokens"] for each in found] == [3, 5, 5]
    assert found[1]["token_ids"] == engine.generate([0, 12, 7], 5).token_ids
    assert len(found[1]["logprobs"]) == 5 and len(found[1]["logprobs"][0]["top"]) == 2


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
def test_it_goes_on_where_it_was_ended(tiny_engine: Path, tmp_path: Path, keep: int) -> None:
    file, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    file.write_text("\n".join(PROMPTS))
    options = ("--input-file", file, "--max-new-tokens", "6", "-o", output)
    assert run_here("run", tiny_engine, *options).code == 0
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:keep]) + (lines[keep][:20] if keep < 5 else b""))
    outcome = run_here("run", tiny_engine, *options)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert output.read_bytes() == whole


def test_another_request_s_results_are_not_gone_on_with(tiny_engine: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    file.write_text("\n".join(PROMPTS[:2]))
    assert run_here("run", tiny_engine, "--input-file", file, "--max-new-tokens", "2", "-o", output).code == 0
    before = output.read_bytes()
    outcome = run_here("run", tiny_engine, "--input-file", file, "--max-new-tokens", "3", "-o", output)
    assert_refused(outcome, ["answers.jsonl, line 1", "--output"], tmp_path)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "a JSON object"),
        ("{", "a JSON object"),
        ("{}", "one of prompt, prompt_token_ids, messages, got none"),
        ('{"prompt": "a", "messages": []}', "got prompt and messages"),
        ('{"prompt": "a", "temprature": 1}', "'temprature'"),
        ('{"prompt": 3}', "prompt: expected a text"),
        ('{"prompt": "a", "seed": true}', "seed: expected an integer"),
        ('{"prompt": "a", "top_p": 7}', "top_p"),
        ('{"prompt": "a", "max_new_tokens": 4000}', "1024"),
        ('{"prompt_token_ids": [99999]}', "token id 0"),
        ('{"messages": [{"role": "user"}]}', "role and content"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_computed(
    tiny_engine: Path, tmp_path: Path, line: str, says: str
) -> None:
    file, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    outcome = run_here("run", tiny_engine, "--input-file", file, "-o", output)
    assert_refused(outcome, ["prompts.jsonl, line 3", says], tmp_path)
    assert not output.exists()
