"""A check as workflow commands, which GitHub Actions turns into annotations.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from dsv3export.golden.results import CheckResult
from dsv3export.golden.texts import case_text, case_texts, groups

# GitHub shows ten errors of a step and drops the rest.
_SHOWN = 9


def github_annotations(result: CheckResult) -> str:
    """A line for each: an error for the first failing layers and families, or a notice that all is well."""
    failing = [group for group in groups(result) if group.failures]
    if not failing:
        return _command("notice", "golden check passed", result.golden, f"{len(result.cases)} cases: {result.model}")
    lines = [
        _command(
            "error", f"golden check: {group.name}", result.golden,
            case_texts(group.failures[:1]) if len(failing) > 1 else case_texts(group.failures),
        )
        for group in failing[:_SHOWN]
    ]  # fmt: skip
    if len(failing) > _SHOWN:
        first = case_text(failing[0].failures[0])
        text = f"{len(failing)} of {len(groups(result))} groups of cases failed; the first: {first}"
        lines.append(_command("error", "golden check failed", result.golden, text))
    return "\n".join(lines)


def _command(level: str, title: str, file: str, message: str) -> str:
    return f"::{level} file={_property(file)},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
