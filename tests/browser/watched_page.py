"""A page in Chromium under watch: whatever it asks of others, opens or complains of is written down."""

from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, Page

DESKTOP = (1440, 900)
PHONE = (390, 844)
WAIT_MS = 10_000
"""How long one condition is waited for."""


@dataclass
class Watch:
    """What pages must not do, as it happened; a test that expects some of it takes it out.

    :param requests: the addresses of all requests so far.
    """

    origin: str
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def over(self, context: BrowserContext) -> None:
        context.on("request", self._asked)
        context.on("dialog", self._dialog)
        context.on("console", lambda said: self._said(said.type, said.text))
        context.on("weberror", lambda error: self.troubles.append(f"uncaught: {error.error}"))

    def _asked(self, request: Any) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((f"{self.origin}/", "data:")):
            self.troubles.append(f"request to another origin: {request.url}")

    def _dialog(self, dialog: Any) -> None:
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):  # the content security policy tells of its violations here
            self.troubles.append(f"console {kind}: {text}")


def watched_page(
    browser: Browser,
    watch: Watch,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> Page:
    """A page of a context of its own: nothing is kept from any other."""
    context = browser.new_context(
        base_url=watch.origin,
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        java_script_enabled=scripts,
    )
    context.set_default_timeout(WAIT_MS)
    watch.over(context)
    return context.new_page()
