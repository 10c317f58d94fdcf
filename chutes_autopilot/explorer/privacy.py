"""What of the platform's answers is not everybody's: private chutes, and records that nobody can judge."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen

from chutes_autopilot.explorer.records import as_object


class NotAListing(ValueError):
    """An answer of another shape, of which nobody can tell what is private in it."""


class _Listing(msgspec.Struct):
    items: list[msgspec.Raw]


_ITEMS = msgspec.json.Decoder(_Listing)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_private(chute: Mapping[str, Any]) -> bool:
    """Whether a chute is private: unless ``public`` is true, or absent (a server that knows no private ones).

    :param chute: its members; none where it could not be read, and then it may be anything.
    """
    return not chute or chute.get("public", True) is not True


def is_private_chute(body: bytes) -> bool:
    """The same of an answer that is one chute.

    :raises NotAListing: it is no object.
    """
    chute = as_object(body)
    if not chute:
        raise NotAListing("no chute")
    return is_private(chute)


def public_listing(body: bytes) -> bytes:
    """A listing without its private chutes and what cannot be read; without any, it is the very same bytes.

    ``total`` shrinks by as many, and the cord_refs that only they refer to go with them. What is left tells of what was
    taken out where that is not on every page alike: it is for answers that anybody may have from the platform.

    :raises NotAListing: it has no list ``items``.
    """
    kept, hidden = _public(body)
    if not hidden:
        return body
    members: dict[str, Any] = _MEMBERS.decode(body)
    total = as_object(body).get("total")
    if type(total) is int:
        members["total"] = max(len(kept), total - hidden)
    return msgspec.json.encode(members | _with_refs(body, kept))


def public_page(body: bytes, page: int, limit: int) -> bytes:
    """A page of the public chutes in a list of all; it is the same whatever else is in the list.

    :raises NotAListing: it has no list ``items``.
    """
    kept, _ = _public(body)
    members: dict[str, Any] = {"total": len(kept), "page": page, "limit": limit}
    return msgspec.json.encode(members | _with_refs(body, kept[page * limit : (page + 1) * limit]))


@frozen
class _Item:
    raw: msgspec.Raw
    cord_ref: str | None


def _public(body: bytes) -> tuple[list[_Item], int]:
    """The public chutes, and how many others there are."""
    try:
        items = _ITEMS.decode(body).items
    except (ValueError, RecursionError):
        raise NotAListing("no list 'items'") from None
    kept = []
    for item in items:
        chute = as_object(item)
        if not is_private(chute):
            ref = chute.get("cord_ref_id")
            kept.append(_Item(item, ref if isinstance(ref, str) else None))
    return kept, len(items) - len(kept)


def _with_refs(body: bytes, items: Sequence[_Item]) -> dict[str, Any]:
    """The members ``items`` and, where there are any, ``cord_refs``."""
    members: dict[str, Any] = {"items": [item.raw for item in items]}
    refs = _MEMBERS.decode(body).get("cord_refs")
    if refs is not None:
        used = {item.cord_ref for item in items}
        members["cord_refs"] = {ref: cords for ref, cords in _members(refs).items() if ref in used}
    return members


def _members(raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
    try:
        return _MEMBERS.decode(raw)
    except (ValueError, RecursionError):
        return {}
