"""What happened to the models as an Atom feed (RFC 4287). Names in it come from strangers."""

import re
from collections.abc import Callable, Sequence
from uuid import UUID, uuid5
from xml.sax.saxutils import escape, quoteattr

from attrs import define, field

from chutes_autopilot.explorer.changes import Change, FieldChange
from chutes_autopilot.web.explorer.answers import Prepared, iso_time, send
from chutes_autopilot.web.site import GatewayRequest

ENTRIES = 100
"""Changes that the feed tells of, the newest."""

ATOM = b"application/atom+xml; charset=utf-8"

_FEED = UUID("5a1f7f0e-7b4b-4a39-9c55-4a64a19b5f0d")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DID = {
    "model.added": "was added",
    "model.removed": "was removed",
    "model.changed": "changed",
    "price.changed": "has new prices",
}


@define(eq=False)
class Feed:
    """Answers /feed.atom, made anew only when something has happened.

    :param version: counts the changes.
    :param recent: up to so many changes, the newest first.
    :param since: what the feed was last changed at as long as nothing has happened, Unix time.
    """

    _version: Callable[[], int]
    _recent: Callable[[int], Sequence[Change]]
    _since: float
    _made: tuple[int, Prepared] | None = field(default=None, init=False)

    def answer(self, request: GatewayRequest) -> None:
        """Send the feed, or 304."""
        version = self._version()
        if self._made is None or self._made[0] != version:
            self._made = version, Prepared.of(atom(self._recent(ENTRIES), self._since), ATOM)
        send(request, self._made[1])


def atom(changes: Sequence[Change], since: float) -> bytes:
    """The feed of these changes, the newest first."""
    updated = max((change.at for change in changes), default=since)
    entries = "".join(map(_entry, changes))
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<feed xmlns="http://www.w3.org/2005/Atom">'
        f"<id>{_FEED.urn}</id>"
        "<title>Chutes models: what changed</title>"
        "<author><name>Chutes AutoPilot</name></author>"
        '<link rel="self" href="/feed.atom"/><link rel="alternate" type="text/html" href="/changes"/>'
        f"<updated>{iso_time(updated)}</updated>{entries}</feed>\n"
    ).encode()


def _entry(change: Change) -> str:
    id = uuid5(_FEED, f"{change.type} {change.at:.0f} {change.key}")
    title = _text(f"{change.name} {_DID[change.type]}")
    said = "; ".join(map(_field, change.fields)) or f"{change.name} {_DID[change.type]}."
    link = "" if change.chute_id is None else f"<link href={quoteattr(f'/?model={change.chute_id}')}/>"
    return (
        f"<entry><id>{id.urn}</id><title>{title}</title><updated>{iso_time(change.at)}</updated>"
        f'<category term="{change.type}"/>{link}<content type="text">{_text(said)}</content></entry>'
    )


def _field(change: FieldChange) -> str:
    unit = "" if change.unit is None else f" ({change.unit.replace('_', ' ')})"
    return f"{change.field}: {_value(change.before)} to {_value(change.after)}{unit}"


def _value(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float() | int():
            return f"{value:.6g}" if abs(value) < 1000 else f"{value:,.0f}"
        case tuple() | list():
            return ", ".join(map(str, value))
    return str(value)


def _text(text: str) -> str:
    return escape(_NO_XML.sub("\ufffd", text))
