"""What the page says when it has nothing, something old, or less than it should have."""

from collections.abc import Sequence
from typing import Literal

import attrs

from chutes_autopilot.web.explorer import figures
from chutes_autopilot.web.explorer.address import Address
from chutes_autopilot.web.explorer.filters import active_filters
from chutes_autopilot.web.explorer.markup import Html, element

State = Literal["loading", "fresh", "stale", "down", "disabled"]

NAMES = {"chutes": "Listing", "v1": "Catalog", "utilization": "Live feed"}
"""What the sources are called here."""
LONG_NAMES = {"chutes": "the listing of all chutes", "v1": "the catalog of models", "utilization": "the live feed"}
_SAID: dict[State, str] = {
    "loading": "being read",
    "fresh": "up to date",
    "stale": "out of date",
    "down": "cannot be read",
    "disabled": "switched off",
}


@attrs.frozen
class Freshness:
    """How current one source is.

    :param source: ``chutes``, ``v1`` or ``utilization``.
    :param age: seconds since it was last read; None if it never was.
    :param reason: why it is not fresh, in a few words; never a key or an upstream's body.
    """

    source: str
    age: float | None
    state: State
    reason: str | None = None


def freshness_list(sources: Sequence[Freshness]) -> Html:
    """One entry per source: its state as a dot, its name and its age."""
    return element(
        "ul",
        (
            element(
                "li",
                element("span", class_=f"dot {source.state}", aria_hidden="true"),
                NAMES.get(source.source, source.source),
                " ",
                _age(source),
                element("span", f" ({_SAID[source.state]})", class_="sr"),
                title=f"{_long(source)} is {_SAID[source.state]}" + (f": {source.reason}" if source.reason else ""),
                class_=source.state,
            )
            for source in sources
        ),
        class_="freshness",
        id="freshness",
        aria_label="Sources",
    )


def _age(source: Freshness) -> Html:
    if source.state == "disabled":
        return element("span", "off", class_="age")
    if source.age is None:
        return element("span", "…" if source.state == "loading" else "never", class_="age")
    return element("span", figures.age(source.age), class_="age", data_age=f"{source.age:.0f}")


def _long(source: Freshness) -> str:
    return LONG_NAMES.get(source.source, source.source)


def notices(sources: Sequence[Freshness]) -> Html | None:
    """What a reader must know before trusting the figures: which source is old or gone, since when and why."""
    troubled = [source for source in sources if source.state in ("stale", "down")]
    if not troubled:
        return None
    return element("div", map(_notice, troubled), class_="notices", role="status")


def _notice(source: Freshness) -> Html:
    name = _long(source)
    if source.age is None:
        said = f"{name[:1].upper()}{name[1:]} could not be read yet."
    else:
        said = f"{name[:1].upper()}{name[1:]} is {figures.age(source.age)} old; what it said then is shown."
    why = f" Last try: {source.reason}." if source.reason else ""
    return element("p", element("strong", "Stale. " if source.age is not None else "Missing. "), said, why,
                   class_=source.state, id=f"notice-{source.source}")  # fmt: skip


def nothing_yet(sources: Sequence[Freshness]) -> Html:
    """Before the first catalog: still being read, or not to be had."""
    down = [source for source in sources if source.state == "down"]
    if down and len(down) == sum(source.state != "disabled" for source in sources):
        return _card(
            "The platform cannot be reached",
            "None of its lists could be read, and nothing is kept from before. They are tried again by themselves; "
            "requests are routed as soon as the first ones come.",
            element("ul", (element("li", f"{NAMES.get(s.source, s.source)}: {s.reason or 'no answer'}") for s in down)),
            element("p", element("a", "Try again", href="", id="again", class_="chip strong")),
            state="down",
        )
    return _card(
        "Reading the catalogs",
        "The models are shown as soon as the first list has come; this takes a few seconds.",
        element("div", (element("i") for _ in range(12)), class_="skeleton", aria_hidden="true"),
        element("p", element("a", "Reload", href="", id="again", class_="chip strong")),
        state="loading",
    )


def empty() -> Html:
    """The sources were read and hold nothing."""
    return _card("There are no models", "The catalogs were read, and they list nothing at the moment.", state="empty")


def filtered_to_nothing(address: Address, everything: int) -> Html:
    """Models there are, but none that passes all filters."""
    return _card(
        "No model matches",
        f"None of the {everything} models passes all of these filters. Take one off:",
        active_filters(address),
        state="filtered",
    )


def refused(parameter: str, message: str, address: Address) -> Html:
    """A parameter of the address that means nothing."""
    return _card(
        "This address cannot be read",
        f"The parameter {parameter}: {message}",
        element("p", element("a", "Show all models", href=address.only(()).href, id="again", class_="chip strong")),
        state="refused",
    )


def _card(title: str, said: str, *more: object, state: str) -> Html:
    return element("section", element("h2", title), element("p", said), more, class_=f"state {state}")
