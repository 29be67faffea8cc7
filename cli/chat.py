"""The conversation of `run --interactive`: lines from a terminal or a pipe, commands that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3export.cli.transcript import Transcript
from dsv3export.errors import RequestError, ResourceError, UserError

if TYPE_CHECKING:
    from dsv3export.runtime.conversation import Conversation

HELP = """/reset         begin anew
/system TEXT   begin anew with this system message
/save FILE     write the messages as JSON
/help          show this
/exit          leave; Ctrl-D does so too
Ctrl-C stops an answer; what has come of it stays. Alt-Enter breaks a line."""


def chat(conversation: Conversation, how: dict[str, Any], say_stats: Callable[[Transcript, int], None] | None) -> None:
    """Talks until the input ends.

    Args:
        how: Of each answer, as for `Conversation.say`.
        say_stats: Called with each finished answer and the number of tokens of its prompt.
    """
    if sys.stdin.isatty():
        click.echo("/help lists the commands, Ctrl-D leaves.", err=True)
    for line in _lines():
        if _leaves(line, conversation, how, say_stats):
            return


def _leaves(
    line: str, conversation: Conversation, how: dict[str, Any],
    say_stats: Callable[[Transcript, int], None] | None,
) -> bool:  # fmt: skip
    """Does what a line says; whether that is to leave. A mistake in it is told and does not end the conversation."""
    try:
        if line.startswith("/"):
            return _obey(line, conversation)
        if line.strip():
            _answer(conversation, line, how, say_stats)
    except UserError as error:
        click.echo(f"dsv3export: {error}", err=True)
    return False


def _answer(
    conversation: Conversation, line: str, how: dict[str, Any],
    say_stats: Callable[[Transcript, int], None] | None,
) -> None:  # fmt: skip
    transcript = Transcript()
    pieces = conversation.say(line, **how)
    try:
        for text in transcript.follow(pieces):
            click.echo(text, nl=False)
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False)
    finally:
        pieces.close()
        click.echo()
    if say_stats:
        say_stats(transcript, conversation.prompt_tokens)


def _obey(line: str, conversation: Conversation) -> bool:
    """Does what a command says; whether that is to leave. Raises UserError."""
    name, _, rest = line[1:].strip().partition(" ")
    if name == "exit" and not rest:
        return True
    if name == "help" and not rest:
        click.echo(HELP, err=True)
    elif name == "reset" and not rest:
        conversation.reset()
    elif name == "system" and rest:
        conversation.reset(rest.strip())
    elif name == "save" and rest:
        _save(Path(rest.strip()), conversation)
    else:
        raise RequestError(f"command {line.strip()!r}", expected="one of those that /help lists")
    return False


def _save(path: Path, conversation: Conversation) -> None:
    text = json.dumps({"messages": conversation.messages}, ensure_ascii=False, indent=1) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"/save {path}", expected="a new file that can be written", got=reason) from None
    click.echo(f"wrote {path}", err=True)


def _lines() -> Iterator[str]:
    """What is typed, with editing and history; without a terminal, the lines of stdin."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession("> ", history=_history(), key_bindings=keys)
    while True:
        with suppress(KeyboardInterrupt):  # Ctrl-C at the prompt drops the line
            try:
                yield session.prompt()
            except EOFError:
                return


def _history() -> Any:
    """Of earlier conversations, in the user's state folder; of this one only where that cannot be written."""
    from platformdirs import user_state_path
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = user_state_path("dsv3export", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "history").open("a").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(folder / "history"))
