"""Numbers and texts as reports show them."""

from __future__ import annotations

import math

_MAX_TEXT = 400
_NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


def visible(text: str, limit: int = _MAX_TEXT) -> str:
    r"""A stranger's text with all that cannot be seen written out, at most `limit` characters of it.

    A newline becomes an arrow; control characters, marks that turn the direction of writing, lone surrogates and the
    like become ``\uXXXX``, so that a text can neither hide something nor rearrange what stands around it.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return cut if cut.isprintable() else "".join(map(_visible, cut))


def number(value: float) -> str:
    """Three digits: ``0.0123``, ``4.5e-7``, ``1,234``; ``0``, ``∞``, ``-∞`` and ``NaN`` as such."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(share: float) -> str:
    """0.1234 -> ``12.3 %``; 1 and 0 without digits, and nothing between them is rounded to them."""
    if not math.isfinite(share) or share in (0, 1):
        return f"{number(share * 100)} %"
    rounded = f"{share * 100:.1f}"
    return f"{'<0.1' if rounded == '0.0' else '>99.9' if rounded == '100.0' else rounded} %"


def sort_key(value: float | str) -> float | str:
    """What JavaScript reads as the number; what is none sorts with the largest."""
    return (
        "Infinity"
        if isinstance(value, float) and (math.isnan(value) or value == math.inf)
        else ("-Infinity" if value == -math.inf else value)
    )


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if character == "\n":
        return _NEWLINE
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
