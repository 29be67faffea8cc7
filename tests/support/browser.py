"""A real headless Chromium for tests; they are skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

_LOUD = ("error", "warning")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Seen:
    """What a page did by itself: errors it reported, and addresses it asked for."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A running browser. Skips the test where none is installed (`make browser` installs one)."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine; make browser installs one on Debian and Ubuntu")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        # Chromium's own sandbox refuses to run as root, which is what containers have.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = running.chromium.launch(executable_path=path, args=arguments)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def opened(
    chromium: Any, page: Path, scheme: Literal["light", "dark"] = "light", width: int = 1200
) -> Iterator[tuple[Any, Seen]]:
    """A file in a window of its own, without a network."""
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True, reduced_motion="reduce"
    )
    seen = Seen()
    tab = context.new_page()
    tab.set_default_timeout(10_000)
    tab.on(
        "console", lambda message: seen.errors.append(message.text) if message.type in ("error", "warning") else None
    )
    tab.on("pageerror", lambda error: seen.errors.append(str(error)))
    tab.on("request", lambda request: seen.requests.append(request.url))
    try:
        tab.goto(page.as_uri())
        yield tab, seen
    finally:
        context.close()
