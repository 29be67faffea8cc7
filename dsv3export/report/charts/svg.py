"""SVG elements whose attributes and texts are escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from markupsafe import Markup, escape

from dsv3export.report.text import visible

Attribute: TypeAlias = str | float | None


def element(name: str, children: Iterable[Markup | str] = (), /, **attributes: Attribute) -> Markup:
    """``<name attribute="...">children</name>``.

    Of the names of attributes, a last underscore is left out and others are hyphens; None is no attribute.
    """
    given = [(_attribute(key), _value(value)) for key, value in attributes.items() if value is not None]
    written = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in given)
    inner = Markup("").join(child if isinstance(child, Markup) else escape(visible(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inner)


def text(x: float, y: float, content: str, **attributes: Attribute) -> Markup:
    return element("text", [content], x=x, y=y, **attributes)


def drawing(width: float, height: float, label: str, children: Iterable[Markup], style: str | None = None) -> Markup:
    """The outermost element.

    Args:
        width, height: In pixels, where nothing else says how large it is.
        label: What a screen reader says in place of the picture.
        style: ``wide`` for one that fills its place.
    """
    box = f"0 0 {width:.6g} {height:.6g}"
    return element("svg", children, viewBox=box, width=width, height=height, role="img", aria_label=label, class_=style)


def _attribute(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return "\n".join(visible(line, limit=len(line)) for line in value.split("\n"))
    return f"{value:.6g}"
