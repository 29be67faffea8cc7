"""What TensorRT says, kept instead of printed."""

from __future__ import annotations

from typing import Any

_LONGEST = 300


def make_log(trt: Any, harmless: tuple[str, ...] = ()) -> Any:
    """A logger for `Builder` and `Runtime` that prints nothing.

    `errors` has what went wrong since it was last cleared, but for messages with one of the texts `harmless` in them;
    `reason()` clears it and puts it into one line.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            failed = severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            if failed and not any(text in message for text in harmless):
                self.errors.append(" ".join(message.split()))

        def reason(self) -> str:
            text = "; ".join(dict.fromkeys(self.errors))[:_LONGEST]
            self.errors.clear()
            return text or "no reason given"

    return Log()
