"""The official client, against the server as it is started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from dsv3export.runtime.chat_template import ChatTemplate
from dsv3export.runtime.engine import Engine
from tests.serve.conftest import Running, serving
from tests.support.command_line import assert_refused, run_process

MESSAGES: Any = [{"role": "user", "content": "Continue: And the LORD said unto Moses,"}]
PROMPT = "And it came to pass in"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Engine:
    return Engine.load(tiny_engine, threads=1)


@pytest.fixture(scope="module")
def chat_ids(engine: Engine, tiny_fp8: Path) -> list[int]:
    assert engine.tokenizer is not None
    return engine.tokenizer.encode(ChatTemplate.from_directory(tiny_fp8).render(MESSAGES))


def test_chat_is_what_the_engine_generates(client: openai.OpenAI, engine: Engine, chat_ids: list[int]) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_completion_tokens=24)
    expected = engine.generate(chat_ids, 24)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage is not None and answer.model == "tiny"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(chat_ids), len(expected.token_ids))


def test_content_in_parts_is_one_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Continue: And the LORD "}, {"type": "text", "text": "said unto Moses,"}]
    both = [MESSAGES, [{"role": "user", "content": parts}]]
    texts = [
        client.chat.completions.create(model="tiny", messages=each, temperature=0, max_tokens=9).choices[0].message
        for each in both
    ]
    assert texts[0].content == texts[1].content


def test_a_stream_adds_up_and_ends_with_usage(client: openai.OpenAI, engine: Engine, chat_ids: list[int]) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=24, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == engine.generate(chat_ids, 24).text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:] if chunk.choices] == ["length"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_seeded_choices_are_those_of_the_engine(client: openai.OpenAI, engine: Engine) -> None:
    asked: Any = {"max_tokens": 16, "temperature": 0.9, "top_p": 0.9, "seed": 5}
    answer = client.completions.create(model="tiny", prompt=PROMPT, n=3, **asked)
    expected = engine.generate([PROMPT] * 3, 16, temperature=0.9, top_p=0.9, seed=5)
    assert [choice.text for choice in answer.choices] == [result.text for result in expected]
    assert len({choice.text for choice in answer.choices}) > 1
    again = client.completions.create(model="tiny", prompt=PROMPT, n=3, **asked)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_prompts_of_all_forms(client: openai.OpenAI, engine: Engine) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(PROMPT)
    forms: list[tuple[Any, int]] = [(PROMPT, 1), (ids, 1), ([PROMPT, "In"], 2), ([ids, ids], 2)]
    expected = engine.generate(PROMPT, 6).text
    for prompt, count in forms:
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, temperature=0)
        assert len(answer.choices) == count and answer.choices[0].text == expected


def test_stop_strings_end_the_text(client: openai.OpenAI, engine: Engine) -> None:
    whole = engine.generate(PROMPT, 40).text
    stop = whole[12:17]
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, temperature=0, stop=[stop, "ZZZ"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_penalties_and_bias_are_those_of_the_engine(client: openai.OpenAI, engine: Engine) -> None:
    plain = engine.generate(PROMPT, 24)
    never = str(plain.token_ids[0])
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=24, temperature=0, frequency_penalty=2, presence_penalty=2,
        logit_bias={never: -100}, best_of=1,
    )  # fmt: skip
    expected = engine.generate(PROMPT, 24, frequency_penalty=2, presence_penalty=2, logit_bias={int(never): -100.0})
    assert answer.choices[0].text == expected.text != plain.text
    assert int(never) not in expected.token_ids
    assert len(set(expected.token_ids)) > len(set(plain.token_ids))


def test_what_asks_for_nothing_is_taken(client: openai.OpenAI) -> None:
    nothing: dict[str, Any] = {"tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}}
    client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1, **nothing)


def test_logprobs_are_those_of_the_logits(client: openai.OpenAI, engine: Engine, chat_ids: list[int]) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 5
    ids = engine.generate(chat_ids, 5).token_ids
    logits = engine.logits([*chat_ids, *ids])[len(chat_ids) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for row, token, found in zip(expected, ids, logprobs.content, strict=True):
        assert found.logprob == pytest.approx(row[token], abs=1e-4)
        assert [top.logprob for top in found.top_logprobs] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)
    text = b"".join(bytes(found.bytes or []) for found in logprobs.content).decode("utf-8", "replace")
    assert text == answer.choices[0].message.content
    completion = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2)
    found_offsets = completion.choices[0].logprobs
    assert found_offsets is not None and found_offsets.tokens is not None and found_offsets.text_offset is not None
    assert found_offsets.text_offset == [0, len(found_offsets.tokens[0]), len("".join(found_offsets.tokens[:2]))]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.models.retrieve("huge")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 5000}, "at most 1024 tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature|JSON"),
        ({"top_p": 0}, "top_p"),
        ({"n": 99}, "n: Input should be less than or equal to 16"),
        ({"stop": [""]}, "stop takes up to 16 texts"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not offered here"),
        ({"tool_choice": "required"}, "tool_choice is not offered here"),
        ({"response_format": {"type": "json_object"}}, "response_format is not offered here"),
        ({"presence_penalty": 2.5}, "presence_penalty: Input should be less than or equal to 2"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7: Input should be less than or equal to 100"),
        ({"logit_bias": {"999999": 1}}, "999999"),
        ({"top_logprobs": 2}, "top_logprobs: expected logprobs to be true"),
        ({"messages": [{"role": "user", "content": "a" * 20_000}]}, "at most 1024 tokens"),
    ],
)
def test_bad_requests_are_400_and_say_why(client: openai.OpenAI, asked: dict[str, Any], says: str) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, **asked}
    with pytest.raises((openai.BadRequestError, ValueError), match=says):
        client.chat.completions.create(**body)


def test_health_metrics_and_what_is_not_there(server: Running) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    before = _metric(server, "dsv3export_generated_tokens_total")
    body = {"prompt": PROMPT, "max_tokens": 7, "temperature": 0}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
    assert _metric(server, "dsv3export_generated_tokens_total") == before + 7
    assert httpx.get(f"{server.url}/nothing").json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405
    page = httpx.get(server.url)
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]


def test_a_second_request_reuses_the_first_one_s_prefix(server: Running) -> None:
    prompt = "And the children of Israel " * 20
    before = _metric(server, "dsv3export_reused_tokens")
    texts = [
        httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 9, "temperature": 0}).json()
        for _ in range(2)
    ]
    assert texts[0]["choices"] == texts[1]["choices"]
    assert _metric(server, "dsv3export_reused_tokens") - before >= texts[0]["usage"]["prompt_tokens"] - 1


def test_keys_limits_and_the_log(tiny_engine: Path) -> None:
    options = ("--api-key", "secret", "--max-body", "2KB", "--slots", "1", "--max-waiting", "0", "--context", "64")
    with serving(tiny_engine, *options) as running:
        url = f"{running.url}/v1/completions"
        keyed = {"Authorization": "Bearer secret"}
        refused = httpx.post(url, json={"prompt": "a"})
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        assert httpx.post(url, json={"prompt": "a"}, headers={"Authorization": "Bearer Secret"}).status_code == 401
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert httpx.post(url, json={"prompt": "a" * 3000}, headers=keyed).status_code == 413

        def parts() -> Iterator[bytes]:
            yield b'{"prompt": "'
            yield b"a" * 3000
            yield b'"}'

        assert httpx.post(url, content=parts(), headers=keyed).status_code == 413
        answer = httpx.post(url, json={"prompt": "And", "max_tokens": 3}, headers=keyed)
        assert answer.json()["usage"]["completion_tokens"] == 3
        code, said = running.end()
    assert code == 0
    (record,) = [json.loads(line) for line in said.splitlines()]
    assert record["id"] == answer.json()["id"] and record["outcome"] == "ok" and record["completion_tokens"] == 3
    assert "secret" not in said


def test_a_port_that_is_taken_is_one_line(server: Running, tiny_engine: Path, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    outcome = run_process("serve", str(tiny_engine), "--port", port, "--threads", "1", "--quiet")
    assert_refused(outcome, [f"cannot listen on 127.0.0.1:{port}", "--port"], tmp_path)


def _metric(server: Running, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))
