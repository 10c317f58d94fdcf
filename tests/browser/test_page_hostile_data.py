"""A platform that means harm, and one that is gone, in a real browser."""

from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from page_service import uuid
from playwright.sync_api import Page, expect
from scripted_platform import FORMULA, MODELS, PATH, SCRIPT, ScriptedPlatform

Open = Callable[..., Page]

INJECT = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'alert(1)'}))"
ACTIVE = ":is(img, iframe, object, embed, base, style, script, [onload], [onerror])"
"""What none of the page's own content is made of."""


@pytest.fixture
def platform_down(platform: ScriptedPlatform) -> Iterator[None]:
    """It answers nothing but errors for the time of a test."""
    platform.down = True
    yield
    platform.down = False


def test_what_the_watch_would_see(scripted: str, open_page: Open) -> None:
    """A script that did get into the page is refused and told of; so is a request to another origin."""
    page = open_page(scripted, "/changes")
    with page.expect_console_message() as said:
        page.evaluate(INJECT)
    assert "Content Security Policy" in said.value.text
    with page.expect_console_message():
        page.evaluate("void fetch('https://evil.example/').catch(() => 0)")
    with page.expect_event("dialog"):
        page.evaluate("alert(1)")
    troubles = page.watch.troubles  # type: ignore[attr-defined]
    assert len([each for each in troubles if "Content Security Policy" in each]) >= 2
    assert "dialog: 1" in troubles
    troubles.clear()


def test_hostile_records_do_nothing(scripted: str, open_page: Open) -> None:
    """Markup, scripts, formulas, addresses and paths in whatever is text: shown as text on every tab, asked of nobody.

    That there was no dialog, no violation of the policy and no request to another origin is what open_page sees to.
    """
    page = open_page(scripted, "/?q=evil")
    assert SCRIPT in (page.locator("#rows").text_content() or "")
    addresses = [f"/?model={uuid(90)}", f"/?compare={uuid(90)},{uuid(91)},{uuid(92)}"]
    addresses += ["/?q=evil&cols=owner,template,features,gpus,quantization,modalities", "/live", "/merge"]
    addresses += [f"/?{name}={quote(SCRIPT)}" for name in ("q", "owner", "model")]
    shown = ""
    for address in addresses:
        page.goto(address)
        expect(page.locator("main")).to_be_visible()
        shown += page.locator("body").text_content() or ""
        assert page.locator(f"main {ACTIVE}").count() == 0
        links = page.eval_on_selector_all("a", "links => links.map(link => link.getAttribute('href'))")
        assert [link for link in links if not link.startswith(("/", "#"))] == []
    assert SCRIPT in shown
    assert FORMULA in shown


def test_bad_records_hide_no_other(scripted: str, open_page: Open) -> None:
    """A chute whose id is a path is told of and left out; a name that is one is only a name."""
    page = open_page(scripted, "/merge")
    assert "Records left out" in (page.locator("main").text_content() or "")
    page.goto("/?limit=100")
    names = page.locator("#rows a.name").all_text_contents()
    assert len([name for name in names if name.startswith("acme/Model-")]) == MODELS
    assert PATH in names
    keys = page.eval_on_selector_all("#rows > tr", "rows => rows.map(row => row.id)")
    assert [key for key in keys if "users" in key] == []


def test_what_is_old_is_shown_and_said_to_be(scripted: str, platform_down: None, open_page: Open) -> None:
    """The platform is gone after there was data: the models stay, with the age of the sources and why it grows."""
    page = open_page(scripted, "/?q=acme")
    notice = page.locator("#notice-utilization")
    for _ in range(100):  # each look is a request, and the page is rendered anew every two seconds
        if notice.count():
            break
        page.reload()
    expect(notice).to_contain_text("Stale.")
    expect(notice).to_contain_text("503")
    expect(page.locator("#freshness li.stale")).not_to_have_count(0)
    assert page.locator("#rows > tr").count() >= MODELS
