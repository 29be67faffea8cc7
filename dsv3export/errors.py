"""The two kinds of failure: what the user can mend, and bugs in this program.

A `UserError` is printed as one line and ends the program with exit code 2; it never shows a traceback.
An `InternalError` is a bug here and says so.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input, a missing package, an unsupported device: something the user can mend.

    Args:
        what: The subject, e.g. ``"config.json: n_group"``.
        expected: What would have been right.
        got: What came instead.
        fix: How to mend it.
    """

    def __init__(self, what: str, *, expected: str = "", got: str = "", fix: str = "") -> None:
        self.what, self.expected, self.got, self.fix = what, expected, got, fix
        clauses = [f"expected {expected}" if expected else "", f"got {got}" if got else ""]
        detail = ", ".join(clause for clause in clauses if clause)
        message = f"{what}: {detail}" if detail else what
        message = f"{message}. {fix}" if fix else message
        super().__init__(" ".join(message.split()))


class ConfigError(UserError):
    """config.json does not describe a model that this program can build."""


class CheckpointError(UserError):
    """A checkpoint file is missing, damaged, or not what the config promises."""


class EngineError(UserError):
    """An engine directory is missing, damaged, altered, or of another format version."""


class TokenizerError(UserError):
    """The tokenizer is missing or damaged."""


class BackendError(UserError):
    """A backend or one of its packages cannot do what was asked on this machine."""


class RequestError(UserError):
    """A generation request asks for something out of range."""


class ResourceError(UserError):
    """The disk is full, the target is read-only, memory does not suffice."""


class InternalError(Exception):
    """A bug in dsv3export: an invariant of its own did not hold."""

    def __init__(self, message: str) -> None:
        super().__init__(f"internal error (a bug in dsv3export, please report it): {message}")
