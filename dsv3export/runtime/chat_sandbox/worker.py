"""Compiles one chat template and renders it, as often as asked. Run as a script: it needs Jinja and nothing of ours.

Its argument says how many seconds of computing each answer may take. Reads frames from stdin: the template's text, then
the variables of each rendering. Answers each with a frame on stdout, ``{"text": ...}`` or ``{"error": ...}``. Ends with
its input, or by the system when an answer takes too long.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import jinja2

Made = TypeVar("Made")
_MEMORY_BYTES = 1 << 30
_MAX_RENDERED = 64 << 20
_LENGTH = struct.Struct("<Q")


def frame(message: object) -> bytes:
    """A message as it goes through a pipe: its length, 8 bytes, and its JSON. Raises TypeError, ValueError."""
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(data)) + data


def read_frame(stream: BinaryIO) -> Any:
    """The next message; None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return json.loads(stream.read(_LENGTH.unpack(head)[0]).decode("utf-8", "surrogatepass"))


def _compiled(source: str) -> jinja2.Template:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    # The settings that templates are written for: what a block's line leaves behind is no text.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(source)


def _rendered(template: jinja2.Template, variables: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > _MAX_RENDERED:
            raise ValueError(f"more than {_MAX_RENDERED} characters")
        pieces.append(piece)
    return "".join(pieces)


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """Plain JSON, where Jinja's own filter would escape for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _allow(seconds: int) -> None:
    """The system ends this process once it has computed for that long from now on, up to one second more."""
    limit = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answered(make: Callable[[], Made], text: Callable[[Made], str]) -> Made | None:
    """What was made, after an answer with its text or with what went wrong."""
    made, answer = None, {}
    try:
        made = make()
        answer["text"] = text(made)
    except Exception as error:  # noqa: BLE001 - a template runs what its author wrote: whatever fails is its failure
        answer["error"] = str(error) or type(error).__name__
    sys.stdout.buffer.write(frame(answer))
    sys.stdout.buffer.flush()
    return made


def _main(seconds: int) -> None:
    stdin = sys.stdin.buffer
    _compiled("")  # so that Jinja is in memory before that is limited
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    _allow(seconds)
    template = _answered(partial(_compiled, read_frame(stdin)), lambda _: "")
    while template is not None and (variables := read_frame(stdin)) is not None:
        _allow(seconds)
        _answered(partial(_rendered, template, variables), str)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
