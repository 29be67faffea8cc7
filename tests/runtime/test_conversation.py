from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsv3export.errors import RequestError, TokenizerError
from dsv3export.runtime.chat_template import ChatTemplate
from dsv3export.runtime.conversation import Conversation, check_role
from dsv3export.runtime.engine import Engine

FIRST, SECOND = "Continue: And the LORD said unto Moses,", "And then?"


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Engine:
    return Engine.load(tiny_engine, threads=1, prefix_cache=None)


def text(pieces: Any) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("new", [5, 60])
def test_a_turn_is_what_the_rendered_messages_give(engine: Engine, new: int) -> None:
    conversation = Conversation.with_engine(engine, "Speak.")
    answers = [text(conversation.say(FIRST, new)), text(conversation.say(SECOND, new))]
    assert conversation.messages == [
        {"role": "system", "content": "Speak."},
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": SECOND},
        {"role": "assistant", "content": answers[1]},
    ]
    template = ChatTemplate.from_directory(engine.tokenizer_folder)
    plain = Engine.load(engine.tokenizer_folder.parent, threads=1)
    for turn in (0, 1):
        rendered = template.render(conversation.messages[: 2 + 2 * turn])
        assert plain.generate(rendered, new).text == answers[turn]


def test_a_turn_computes_only_what_is_new(engine: Engine) -> None:
    assert engine.prefixes is not None and engine.tokenizer is not None
    conversation = Conversation.with_engine(engine)
    answer = list(conversation.say("What did the sons of Jacob say in that day?", 30))
    length = conversation.prompt_tokens + sum(len(piece.token_ids) for piece in answer)
    before = engine.prefixes.stats.found
    list(conversation.say(SECOND, 2))
    # All but the answer's last token, which was never computed.
    assert engine.prefixes.stats.found - before == length - 1


def test_an_answer_that_was_stopped_stays(engine: Engine) -> None:
    conversation = Conversation.with_engine(engine)
    pieces = conversation.say(FIRST, 40)
    seen = [next(pieces).text for _ in range(6)]
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(seen)}
    list(conversation.say(SECOND, 3))
    assert len(conversation.messages) == 4


def test_a_stop_string_cuts_what_is_remembered(engine: Engine) -> None:
    conversation = Conversation.with_engine(engine)
    whole = text(Conversation.with_engine(engine).say(FIRST, 30))
    stop = whole[10:14]
    assert text(conversation.say(FIRST, 30, stop=stop)) == whole[: whole.index(stop)]
    list(conversation.say(SECOND, 3))
    template = ChatTemplate.from_directory(engine.tokenizer_folder)
    assert engine.tokenizer is not None
    assert conversation.prompt_tokens == len(engine.tokenizer.encode(template.render(conversation.messages[:3])))


def test_reset_and_requests_that_do_not_fit(engine: Engine) -> None:
    conversation = Conversation.with_engine(engine, "Speak.")
    with pytest.raises(RequestError, match="1024"):
        conversation.say("and " * 2000)
    assert conversation.messages == [{"role": "system", "content": "Speak."}]
    list(conversation.say(FIRST, 2))
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Speak."}]
    conversation.reset("Sing.")
    assert conversation.messages == [{"role": "system", "content": "Sing."}]


@pytest.mark.parametrize("bad", [None, [], ["x"], [{"role": "user"}], [{"role": 3, "content": "x"}]])
def test_messages_of_a_file_are_checked(bad: object) -> None:
    with pytest.raises(RequestError, match="role and content"):
        check_role(bad)


def test_an_engine_without_tokenizer_or_template(toy_engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError):
        ChatTemplate.from_directory(tmp_path)
