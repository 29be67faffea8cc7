"""The one place where exceptions become a line on stderr and an exit code.

| what happened                                        | exit code |
|------------------------------------------------------|-----------|
| done                                                 | 0         |
| a bug in dsv3export (`InternalError`, anything else) | 1         |
| `UserError`, wrong usage, no memory, OS refusal      | 2         |
| Ctrl-C                                               | 130       |
| the reader of stdout went away                       | 141       |
| SIGTERM                                              | 143       |
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

import click

from dsv3export.cli.options import Invocation
from dsv3export.errors import BackendError, InternalError, ResourceError, UserError

PROGRAM = "dsv3export"

BUG = 1
USER = 2
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

# Top-level module -> what pip installs to bring it.
REQUIREMENT_OF_MODULE = {
    "torch": "dsv3export[build]",
    "onnx": "dsv3export[build]",
    "onnx_ir": "dsv3export[build]",
    "onnxruntime": "dsv3export[cpu]",
    "tokenizers": "dsv3export",
    "fastapi": "dsv3export[serve]",
    "prometheus_client": "dsv3export[serve]",
    "sse_starlette": "dsv3export[serve]",
    "uvicorn": "dsv3export[serve]",
}

# What the machine refuses is not a bug of this program; any other OSError is.
REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that half-written files are removed."""


def exit_code_of(call: Callable[[], object], invocation: Invocation) -> int:
    """Runs `call` and returns the program's exit code, having said on stderr what went wrong."""
    try:
        call()
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort) as stop:
        _say(_with_hint("interrupted", stop))
        return INTERRUPTED
    except Terminated as stop:
        _say(_with_hint("terminated", stop))
        return TERMINATED
    except Exception as exception:  # noqa: BLE001 (the last resort: everything becomes an exit code)
        code = _report(exception, invocation)
        _settle_stdout()
        return code
    return 0


def _with_hint(what: str, stop: BaseException) -> str:
    """What was stopped may have said how to go on (see `EngineWriter`)."""
    return f"{what}: {stop}" if str(stop) else what


def _report(exception: Exception, invocation: Invocation) -> int:
    if invocation.verbose:
        traceback.print_exception(exception, file=sys.stderr)
    user_error = as_user_error(exception)
    if user_error is not None:
        _say(f"error: {user_error}")
        return USER
    message = str(exception) if isinstance(exception, InternalError) else _as_bug(exception)
    hint = "" if invocation.verbose else f" Run it again with -v for the traceback: {PROGRAM} -v ..."
    _say(f"{message}.{hint}")
    return BUG


def as_user_error(exception: Exception) -> Exception | None:
    """The error to show to the user, or None where `exception` is a bug in this program."""
    if isinstance(exception, UserError):
        return exception
    if isinstance(exception, click.ClickException):
        return UserError(_usage_message(exception))
    if isinstance(exception, MemoryError):
        return ResourceError("out of memory", got=str(exception) or "an allocation that failed")
    if isinstance(exception, ImportError):
        return _package_error(exception)
    if isinstance(exception, OSError) and exception.errno in REFUSALS:
        return ResourceError(f"{exception.filename or 'input or output'}: {exception.strerror}")
    return None


def _package_error(exception: ImportError) -> BackendError | None:
    """A package that is missing, too old, or broken; None where it is none of ours."""
    frames = traceback.walk_tb(exception.__traceback__)
    importers = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    # The name that the exception carries; a native library that fails to load carries none.
    for name in (exception.name or "", *importers):
        module = name.partition(".")[0]
        if module in REQUIREMENT_OF_MODULE:
            missing = isinstance(exception, ModuleNotFoundError) and module == name
            fault = "is not installed" if missing else f"does not import: {exception}"
            fix = f"Install it with: pip install '{REQUIREMENT_OF_MODULE[module]}'"
            return BackendError(f"the Python package {module!r} {fault}", fix=fix)
    return None


def _usage_message(exception: click.ClickException) -> str:
    """Click's message, with the help of the command that was meant."""
    context = exception.ctx if isinstance(exception, click.UsageError) else None
    message = exception.format_message()
    if context is None:
        return message
    return f"{message.rstrip('.')}. See: {context.command_path} --help"


def _as_bug(exception: Exception) -> str:
    return str(InternalError(f"{type(exception).__name__}: {exception}"))


def _say(message: str) -> None:
    """One line on stderr, whatever line breaks the message has."""
    # Where nobody reads stderr either, the exit code has to do.
    with suppress(BrokenPipeError):
        click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)


def _settle_stdout() -> None:
    """Writes what is still buffered, or gives it up: a flush that fails at exit would replace the exit code by 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _forget_stdout()


def _forget_stdout() -> None:
    """Lets the interpreter's flush at exit succeed although nobody reads stdout any more."""
    # ValueError: no file descriptor behind stdout, so nothing will be flushed into a pipe.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
