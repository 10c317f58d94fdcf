"""The feed of changes: well-formed whatever the names are."""

from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.web.explorer.feed import atom

NS = "{http://www.w3.org/2005/Atom}"


def parsed(feed: bytes) -> Any:
    return ElementTree.fromstring(feed)  # noqa: S314 - our own


PRICE = FieldChange("price.input", 0.25, 1.5, "usd_per_1m_tokens")


def test_an_entry_says_what_happened_to_which_model() -> None:
    """The newest first, with the prices before and after and the way to the model; ids stay the same."""
    changes = (
        Change("price.changed", 1_000_000.0, "id", "11111111-0000-4000-8000-000000000000", "org/A", (PRICE,)),
        Change("model.removed", 900_000.0, "v1:b", None, "org/B"),
    )
    feed = parsed(atom(changes, 0.0))
    first, second = feed.findall(f"{NS}entry")
    assert feed.findtext(f"{NS}updated") == first.findtext(f"{NS}updated") == "1970-01-12T13:46:40.000Z"
    assert first.findtext(f"{NS}title") == "org/A has new prices"
    assert first.findtext(f"{NS}content") == "price.input: 0.25 to 1.5 (usd per 1m tokens)"
    assert [link.get("href") for link in first.findall(f"{NS}link")] == ["/?model=11111111-0000-4000-8000-000000000000"]
    assert second.findtext(f"{NS}title") == "org/B was removed"
    assert len({each.findtext(f"{NS}id") for each in (feed, first, second)}) == 3
    assert atom(changes, 5.0) == atom(changes, 0.0)


def test_an_empty_feed_is_as_old_as_the_service() -> None:
    """It has every element that RFC 4287 asks for."""
    feed = parsed(atom((), 86_400.0))
    assert feed.findtext(f"{NS}updated") == "1970-01-02T00:00:00.000Z"
    assert all(feed.find(NS + name) is not None for name in ("id", "title", "author"))


@given(st.text(st.characters(exclude_categories=()), max_size=30), st.text(max_size=30))
def test_hostile_names_are_text(name: str, value: str) -> None:
    """Markup, quotes and characters that XML cannot hold neither break the feed nor add elements to it."""
    name = name.encode("utf-8", "replace").decode()
    change = Change("model.changed", 1.0, name, None, name, (FieldChange("root", value, "<b>&amp;"),))
    (entry,) = parsed(atom((change,), 0.0)).findall(f"{NS}entry")
    assert [child.tag.removeprefix(NS) for child in entry] == ["id", "title", "updated", "category", "content"]
    assert (entry.findtext(f"{NS}content") or "").endswith("<b>&amp;")
