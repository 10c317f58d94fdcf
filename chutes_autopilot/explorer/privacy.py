"""What of the platform's answers is the operator's own: private chutes, which the key brings along."""

from typing import Any

import msgspec

from chutes_autopilot.explorer.records import as_object


class NotAListing(ValueError):
    """An answer of another shape, of which nobody can tell what is private in it."""


class _Listing(msgspec.Struct):
    items: list[msgspec.Raw]


_ITEMS = msgspec.json.Decoder(_Listing)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_private(chute: dict[str, Any]) -> bool:
    """Whether a chute is private: unless ``public`` is true, or absent (a server that knows no private ones)."""
    return chute.get("public", True) is not True


def is_private_chute(body: bytes) -> bool:
    """The same of an answer that is one chute.

    :raises NotAListing: it is no object.
    """
    chute = as_object(body)
    if not chute:
        raise NotAListing("no chute")
    return is_private(chute)


def public_listing(body: bytes) -> tuple[bytes, int]:
    """A listing without its private chutes, and how many these were; without any, it is the very same bytes.

    ``total`` shrinks by as many, and the cord_refs that only private chutes refer to go with them.

    :raises NotAListing: it has no list ``items``.
    """
    try:
        items = _ITEMS.decode(body).items
    except (ValueError, RecursionError):
        raise NotAListing("no list 'items'") from None
    chutes = [as_object(item) for item in items]
    kept = [place for place, chute in enumerate(chutes) if not is_private(chute)]
    hidden = len(items) - len(kept)
    if not hidden:
        return body, 0
    members: dict[str, Any] = _MEMBERS.decode(body)
    members["items"] = [items[place] for place in kept]
    total = as_object(body).get("total")
    if type(total) is int:
        members["total"] = max(len(kept), total - hidden)
    refs = as_object(members["cord_refs"]) if "cord_refs" in members else {}
    if refs:
        used = {chutes[place].get("cord_ref_id") for place in kept if _is_text(chutes[place].get("cord_ref_id"))}
        members["cord_refs"] = {ref: cords for ref, cords in refs.items() if ref in used}
    return msgspec.json.encode(members), hidden


def _is_text(value: object) -> bool:
    return isinstance(value, str)
