"""The server against its own OpenAPI schema, and against bodies that no schema allows."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.conftest import Running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["prompt", "messages", "max_tokens", "n", "stop", "seed", "temperature", "top_p", "stream", "logprobs",
          "top_logprobs", "stream_options", "chat_template_kwargs", "role", "content"]  # fmt: skip


@schemathesis.hook("map_body")
def _short_answers(context: Any, body: Any) -> Any:
    """Schemathesis would ask for 2^31 tokens; what is long is tested elsewhere."""
    if isinstance(body, dict):
        body = {**body, "stream": False}
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 3)
            elif name not in body:
                body[name] = 2
    return body


def test_answers_are_as_the_schema_says(server: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} == {
        "/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{name}", "/health", "/metrics",
    }  # fmt: skip
    for operation in operations:
        cases = operation.as_strategy()

        @settings(max_examples=15, suppress_health_check=list(HealthCheck))
        @given(case=cases)
        def conforms(case: Any) -> None:
            case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=60)

        conforms()


@settings(max_examples=80)
@given(
    body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON,
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
    data=st.integers(0, 2**32),
)
def test_fuzzed_bodies_get_4xx_never_5xx(server: Running, body: Any, path: str, data: int) -> None:
    text = json.dumps(body).encode()
    if data % 3 == 0:  # some are no JSON
        text = bytes(random.Random(data).choices(text + b"\x00\xff{}[]", k=len(text)))
    answer = httpx.post(server.url + path, content=text, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["message"]
