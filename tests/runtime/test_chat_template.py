from __future__ import annotations

import gc
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.chat_sandbox import process
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
        "{{ 'x' * 10 ** 10 ~ messages }}",
        "{% set all = namespace(x='x') %}{% for i in range(60) %}{% set all.x = all.x + all.x %}{% endfor %}",
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


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CPU_SECONDS", 0)


@pytest.mark.usefixtures("_impatient")
def test_a_template_without_end_is_ended_and_the_next_rendering_works() -> None:
    rows = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    found = template("{% if long %}" + rows + "{% endif %}ok")
    for _ in range(2):
        with pytest.raises(RequestError, match="more than 0 seconds"):
            found.render(USER, long=True)
        assert found.render(USER) == "ok"


@pytest.mark.parametrize("source", ["{{ 7 ** 1000000000 }}", "{{ 7 ** messages[0].power }}"])
@pytest.mark.usefixtures("_impatient")
def test_a_number_without_end_is_ended(source: str) -> None:
    """One operation of Python, which no count of loops would see: while it is compiled, and while it runs."""
    with pytest.raises((TokenizerError, RequestError), match="more than 0 seconds"):
        template(source).render([{"power": 10**9}])


def test_threads_share_a_template() -> None:
    found = template("{{ messages[0].content }}")
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda i: found.render([{"content": str(i) * 1000}]), range(40))
    assert list(texts) == [str(i) * 1000 for i in range(40)]


def test_what_json_does_not_have_is_refused_and_odd_text_is_kept() -> None:
    found = template("{{ text }}")
    assert found.render(USER, text="\ud800 \x00 \U0001f600") == "\ud800 \x00 \U0001f600"
    with pytest.raises(RequestError, match="not JSON serializable"):
        found.render(USER, text=object())


def test_its_process_ends_with_it() -> None:
    found = template("a")
    child = found._process._process
    assert child is not None and child.poll() is None
    del found
    gc.collect()
    assert child.returncode is not None
