"""The frame of every page: head, tabs, freshness, and the place where the content goes."""

from collections.abc import Sequence

import attrs

from chutes_autopilot.web.explorer.markup import Html, document, element
from chutes_autopilot.web.explorer.states import Freshness, freshness_list, notices
from chutes_autopilot.web.explorer.static_files import StaticFiles

TABS = (("/", "Models"), ("/live", "Live"), ("/merge", "Merge"), ("/changes", "Changes"))

CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""No inline script or style, and nothing from anywhere else."""


@attrs.frozen
class Frame:
    """What all pages have in common.

    :param simulated: nothing that is shown is real.
    """

    static: StaticFiles
    simulated: bool = False

    def page(
        self,
        tab: str,
        content: Html,
        *,
        sources: Sequence[Freshness],
        warned: Sequence[Freshness],
        said: str,
        title: str,
        marks: str | None = None,
    ) -> bytes:
        """A whole page.

        :param tab: the path of the current tab.
        :param warned: the sources of which a notice tells where they are not fresh.
        :param said: what a screen reader is told after an update.
        :param marks: further classes of the body.
        """
        return document(
            self._head(title),
            element(
                "body",
                element("a", "Skip to the content", href="#main", class_="skip"),
                self._top(tab, sources),
                element("main", notices(warned), content, id="main", tabindex="-1"),
                element("p", said, role="status", id="status", class_="sr"),
                class_=marks,
            ),
            lang="en",
            data_plot_script=self.static.path("uPlot.iife.min.js"),
        )

    def _head(self, title: str) -> Html:
        path = self.static.path
        return element(
            "head",
            element("meta", charset="utf-8"),
            element("title", f"{title} – Chutes AutoPilot"),  # noqa: RUF001 - a dash is meant
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", name="referrer", content="same-origin"),
            element("link", rel="icon", href=path("favicon.svg"), type="image/svg+xml"),
            element("link", rel="stylesheet", href=path("uPlot.min.css")),
            element("link", rel="stylesheet", href=path("app.css")),
            element("link", rel="alternate", type="application/atom+xml", title="Changes", href="/feed.atom"),
            # before the first paint, so that a chosen theme does not flash
            element("script", type="module", src=path("app.js"), blocking="render", async_=True),
        )

    def _top(self, tab: str, sources: Sequence[Freshness]) -> Html:
        return element(
            "header",
            element(
                "a",
                element("span", "", class_="logo", aria_hidden="true"),
                element("span", "Chutes AutoPilot"),
                href="/",
                class_="brand",
                id="brand",
            ),
            element("span", "simulated", class_="mark warn", id="simulated",
                    title="Demo mode: models, prices, load and the history before the start are invented.")
            if self.simulated
            else None,
            element(
                "nav",
                (
                    element("a", name, href=path, id=f"tab-{path[1:]}", aria_current="page" if path == tab else None)
                    for path, name in TABS
                ),
                aria_label="Pages",
            ),
            freshness_list(sources),
            element("button", "Theme", type="button", id="theme", class_="scripted", title="Light or dark"),
            class_="top",
        )  # fmt: skip
