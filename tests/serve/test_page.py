"""The chat page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.conftest import Running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (`make browser` installs it)")


def _is_problem(message: Any) -> bool:
    """Chromium also reports each answer of 400 as an error; one test asks for that."""
    return message.type == "error" and "status of 400" not in message.text


@pytest.fixture
def page(server: Running) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if _is_problem(message) else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if server.url not in request.url else None)
        page.goto(server.url)
        yield page
        assert problems == []
        browser.close()


def test_two_turns_and_a_new_chat(page: Any) -> None:
    from playwright.sync_api import expect

    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("New tokens").fill("12")
    message = page.get_by_label("Message", exact=True)
    message.fill("And the LORD said <b>unto</b> Moses,")
    message.press("Enter")
    page.get_by_role("button", name="Send").wait_for(state="visible")
    expect(page.locator("#state")).to_contain_text("tokens/s")
    expect(page.locator(".assistant")).to_have_count(1)
    assert page.locator(".user").text_content() == "And the LORD said <b>unto</b> Moses,"
    assert page.locator(".user b").count() == 0
    assert page.locator(".assistant").text_content().strip()
    assert page.locator("#model").text_content() == "tiny"
    message.fill("And then?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".assistant")).to_have_count(2)
    page.get_by_role("button", name="Send").wait_for(state="visible")
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0


def test_an_answer_can_be_stopped_and_an_error_is_shown(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("New tokens").fill("900")
    message = page.get_by_label("Message", exact=True)
    message.fill("Tell")
    # At once, as the whole answer may take less than a second.
    page.evaluate("document.querySelector('#form').requestSubmit(); document.querySelector('#stop').click()")
    page.get_by_role("button", name="Send").wait_for(state="visible")
    assert page.locator(".error").count() == 0
    page.evaluate("messages.push({role: 'user', content: 'a'.repeat(9000)})")
    page.evaluate("document.querySelector('#max_tokens').value = 9")
    message.fill("more")
    message.press("Enter")
    page.locator(".error").wait_for()
    assert "at most 1024 tokens" in page.locator(".error").text_content()
