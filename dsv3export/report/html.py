"""Pages: a template, rendered into one file that needs nothing else and asks for nothing.

Every text that a template puts out is escaped and made visible (`text.visible`), with no way around it but `Markup` of
our own. The page's security policy allows the one style sheet and the one script that are in it, by their digests, and
no request at all: were a text ever to get through as markup, it could neither run nor call home.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dsv3export import __version__
from dsv3export.report.text import number, percent, sort_key, visible


def render_page(template: str, **context: object) -> bytes:
    """The page of a template in ``report/templates`` that extends ``base.html``, as UTF-8.

    ``base.html`` names the blocks and what it wants of `context`: ``title``, and ``sections`` as (anchor, label) pairs.
    """
    style, script = _asset("report.css"), _asset("report.js")
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'"
    page = _environment().get_template(template)
    text = page.render(style=style, script=script, policy=policy, version=__version__, **context)
    return text.encode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dsv3export.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "sort_key": sort_key}
    return environment


def _finalize(value: object) -> object:
    return visible(value) if type(value) is str else value


def _asset(name: str) -> Markup:
    """A file of our own, as it is."""
    return Markup((files("dsv3export.report") / "templates" / name).read_text(encoding="utf-8"))


def _digest(content: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")
