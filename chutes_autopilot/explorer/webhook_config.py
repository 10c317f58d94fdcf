"""The webhooks an operator asks for: a JSON file, read strictly, before anything starts.

::

    [{"name": "prices", "url": "https://hooks.example.org/in", "secret": "whsec_...", "events": ["price.changed"]}]
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from chutes_autopilot.explorer import addresses
from chutes_autopilot.explorer.addresses import IPAddress, read_host
from chutes_autopilot.explorer.webhook_events import EVENT_TYPES, EventType
from chutes_autopilot.explorer.webhook_signing import read_secret

MAX_ENDPOINTS = 16

_MEMBERS = {"name": False, "url": True, "secret": True, "events": True}
"""Whether an entry must have it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_URL = re.compile(r"[!-\[\]-~]{1,2048}")


@frozen
class WebhookEndpoint:
    """Somebody who is told.

    :param name: for logs and the queue: the URL and the secret must stay out of both.
    :param key: what its messages are signed with.
    """

    name: str
    url: str = field(repr=False)
    key: bytes = field(repr=False)
    events: frozenset[EventType]


class WebhookConfigError(ValueError):
    """A file that cannot be used.

    :ivar faults: each names the entry, counted from 1, and the member; none holds a secret or a URL.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def parse_webhooks(
    text: str, *, refusal: Callable[[IPAddress], str | None] = addresses.refusal
) -> tuple[WebhookEndpoint, ...]:
    """The endpoints that a file's text names; none is legal.

    :param refusal: what an address is that may not be connected to.
    :raises WebhookConfigError: names every fault.
    """
    entries = _entries(text)
    faults: list[str] = []
    found: list[WebhookEndpoint] = []
    for number, entry in enumerate(entries, 1):
        try:
            endpoint = _endpoint(entry, refusal)
        except WebhookConfigError as error:
            faults += [f"entry {number}: {fault}" for fault in error.faults]
            continue
        if any(endpoint.name == other.name for other in found):
            faults.append(f"entry {number}: name must differ from the other entries' (without one, it is the host)")
        found.append(endpoint)
    if faults:
        raise WebhookConfigError(*faults)
    return tuple(found)


def _entries(text: str) -> list[Any]:
    try:
        entries = json.loads(text, object_pairs_hook=_Members)
    except json.JSONDecodeError as error:
        raise WebhookConfigError(f"must be JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):  # such as a number of ten thousand digits
        raise WebhookConfigError("must be JSON that can be read") from None
    if not isinstance(entries, list) or len(entries) > MAX_ENDPOINTS:
        raise WebhookConfigError(f"must be a JSON list of at most {MAX_ENDPOINTS} entries")
    return entries


class _Members(dict[str, Any]):
    """A JSON object that remembers which members it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.twice = {name for name in names if names.count(name) > 1}


def _endpoint(entry: Any, refusal: Callable[[IPAddress], str | None]) -> WebhookEndpoint:
    if not isinstance(entry, _Members):
        raise WebhookConfigError("must be an object")
    faults = list(_wrong_members(entry))
    values: dict[str, Any] = {}
    for member, parse in _parsers(refusal).items():
        if member not in entry:
            continue
        try:
            values[member] = parse(entry[member])
        except ValueError as error:
            faults.append(f"{member} {error}")
    if faults:
        raise WebhookConfigError(*faults)
    url, host = values["url"]
    return WebhookEndpoint(values.get("name", host), url, values["secret"], values["events"])


def _wrong_members(entry: _Members) -> Iterator[str]:
    for member in _MEMBERS:
        if member in entry.twice:
            yield f"{member} must be there once"
        elif _MEMBERS[member] and member not in entry:
            yield f"{member} is missing"
    if unknown := len(entry.keys() - _MEMBERS.keys()):  # not named: a slip may have put a secret there
        yield f"must have no members but {', '.join(_MEMBERS)}; {unknown} more found"


def _parsers(refusal: Callable[[IPAddress], str | None]) -> dict[str, Callable[[Any], Any]]:
    return {"name": _name, "url": lambda value: _url(value, refusal), "secret": _secret, "events": _events}


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first")
    return value


def _url(value: Any, refusal: Callable[[IPAddress], str | None]) -> tuple[str, str]:
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise ValueError("must be a URL of 1 to 2048 printable ASCII characters without spaces and backslashes")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("must have a valid host and port") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc or "#" in value:
        raise ValueError("must have no user name, password or fragment")
    written = f"[{host}]" if ":" in host else host
    address = read_host(written)
    if parts.netloc.lower() != (written if port is None else f"{written}:{port}"):
        raise ValueError("must have a valid host and port")
    if not isinstance(address, str) and (what := refusal(address)) is not None:
        raise ValueError(f"must have a public address; this one is {what}")
    # others below 1024 belong to services that speak no HTTP, and might take a request for something else
    if port is not None and port < 1024 and port not in (80, 443):
        raise ValueError("must have port 80, 443, or one from 1024 on")
    return value, host


def _secret(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return read_secret(value)


def _events(value: Any) -> frozenset[EventType]:
    known: dict[Any, EventType] = {name: name for name in EVENT_TYPES}
    if not isinstance(value, list) or not value or not all(isinstance(x, str) and x in known for x in value):
        raise ValueError(f"must be a list of one or more of {', '.join(EVENT_TYPES)}")
    return frozenset(known[name] for name in value)
