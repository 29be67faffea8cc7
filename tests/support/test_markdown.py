"""The reader that the documentation tests rely on sees what it should."""

from __future__ import annotations

from tests.support.markdown import Command, anchors, blocks, commands, links

PAGE = """# A title: with `code`, twice

See [the licence](../LICENSE) and ![a picture](a.png).

```console
$ echo one \\
    two
one two
$ true
```

```text
[not a link](nowhere)
```
"""


def test_blocks_carry_their_word_and_line() -> None:
    assert [(block.info, block.line) for block in blocks(PAGE)] == [("console", 5), ("text", 12)]


def test_commands_with_continuation_and_output() -> None:
    first, second = commands(next(blocks(PAGE)))
    assert (first.line, first.text, first.output) == (6, "echo one \\\n    two", ["one two"])
    assert (second.text, second.output) == ("true", [])


def test_output_with_an_ellipsis() -> None:
    assert Command(1, "x", ["a ... c", "d"]).explains("a b\nb c\nd\n")
    assert not Command(1, "x", ["a ... c"]).explains("a b")
    assert not Command(1, "x", ["a.c"]).explains("abc")
    assert Command(1, "x").explains("anything")


def test_links_outside_of_code() -> None:
    assert links(PAGE) == ["../LICENSE", "a.png"]


def test_anchors() -> None:
    assert anchors(PAGE) == {"a-title-with-code-twice"}
