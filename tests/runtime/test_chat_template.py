from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.chat_template import ChatTemplate
from dsv3export.runtime.tokenizer import Tokenizer

USER = [{"role": "user", "content": "Who?"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, "the template")


def test_the_fixture_renders_as_transformers_does(tiny_fp8: Path, goldens: Callable[[str], Path]) -> None:
    golden = json.loads((goldens("fp8") / "goldens.json").read_text())["chat_template"]
    rendered = ChatTemplate.from_directory(tiny_fp8).render(golden["messages"])
    assert rendered == golden["rendered"]
    assert Tokenizer.from_directory(tiny_fp8).encode(rendered) == golden["ids"]


def test_it_agrees_with_transformers_on_what_templates_use(tiny_fp8: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = """{%- for message in messages %}
    {%- if loop.first %}
{{ bos_token }}
    {%- endif %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {% set ns = namespace(text=message.content | trim) %}
<|{{ message.role }}|>{{ ns.text | tojson }}{{ {'b': 1, 'a': '<é>'} | tojson(indent=2) }}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
    messages = [{"role": "system", "content": " a\n"}, {"role": "tool", "content": "no"}, *USER]
    (expected,), _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert template(source).render(messages) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": "A"}, "A"),
        ({"chat_template.json": json.dumps({"chat_template": "B"})}, "B"),
        ({"tokenizer_config.json": json.dumps({"chat_template": "C{{ eos_token }}", "eos_token": "E"})}, "CE"),
        ({"chat_template.jinja": "A", "tokenizer_config.json": json.dumps({"chat_template": "C"})}, "A"),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "tools", "template": "T"},
                                                                 {"name": "default", "template": "D"}]})}, "D"),
    ],
)  # fmt: skip
def test_where_a_template_may_be(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert ChatTemplate.from_directory(tmp_path).render(USER) == expected


@pytest.mark.parametrize("files", [{}, {"tokenizer_config.json": "{}"}, {"chat_template.json": '{"chat_template": 3}'}])
def test_none_is_said(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match="expected a chat template, got none"):
        ChatTemplate.from_directory(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ missing.attribute }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_one_error(source: str) -> None:
    with pytest.raises(RequestError):
        template(source).render(USER)


@pytest.mark.parametrize("source", ["{% if %}", "{{", "x" * ((1 << 20) + 1)])
def test_text_that_is_no_template(source: str) -> None:
    with pytest.raises(TokenizerError, match="the template"):
        template(source)


def test_variables_reach_the_template() -> None:
    found: Any = template("{{ bos_token }}{{ thinking }}{{ strftime_now('%Y')[:2] }}").render(USER, thinking=True)
    assert found == "<s>True20"
