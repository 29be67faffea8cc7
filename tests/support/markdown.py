"""Reads what tests check in the documentation: code blocks, commands with their output, links, headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (?P<title>.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced code block: the word after the fence, the text, the line of the fence (from 1)."""

    info: str
    body: str
    line: int


@dataclass
class Command:
    """One ``$`` line of a console block and the lines printed below it; ``...`` there stands for any text."""

    line: int
    text: str
    output: list[str] = field(default_factory=list)

    def explains(self, printed: str) -> bool:
        """Whether `printed` is what the document shows. Nothing shown fits every output."""
        if not self.output:
            return True
        parts = "\n".join(self.output).strip().split("...")
        return re.fullmatch(".*".join(map(re.escape, parts)), printed.strip(), re.DOTALL) is not None


def blocks(text: str) -> Iterator[Block]:
    """The fenced code blocks in order."""
    for match in FENCE.finditer(text):
        yield Block(match["info"].strip(), match["body"], text.count("\n", 0, match.start()) + 1)


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a line that ends in a backslash goes on in the next."""
    found: list[Command] = []
    for offset, line in enumerate(block.body.splitlines(), start=1):
        if line.startswith("$ "):
            found.append(Command(block.line + offset, line[2:]))
        elif found and not found[-1].output and found[-1].text.endswith("\\"):
            found[-1].text += "\n" + line
        else:
            assert found, f"line {block.line + offset}: output before the first command"
            found[-1].output.append(line)
    return found


def links(text: str) -> list[str]:
    """The targets of links and images outside of code blocks."""
    prose = FENCE.sub("", text)
    return [match["target"] for pattern in (LINK, IMAGE) for match in pattern.finditer(prose)]


def anchors(text: str) -> set[str]:
    """The fragments that a Markdown page offers: its headings as GitHub spells them in links."""
    titles = (match["title"].lower() for match in HEADING.finditer(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
