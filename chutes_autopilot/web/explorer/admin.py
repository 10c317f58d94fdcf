"""What only the operator may do: see the private chutes of the key, and have everything fetched anew."""

import hmac
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import sha256
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from chutes_autopilot.explorer.cache_names import FULL_LISTING, Document, document_of, listing_document, v1_document
from chutes_autopilot.explorer_live.proxied import ProxiedAnswer, ProxyError
from chutes_autopilot.policy.stickiness import bearer_token
from chutes_autopilot.web.explorer.answers import Prepared, iso_time, send
from chutes_autopilot.web.explorer.errors import NOT_STORED, ExplorerError, not_found
from chutes_autopilot.web.explorer.flights import Flights
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.site import GatewayRequest

PAUSE = 10.0
"""Seconds from the start of one refresh to that of the next."""

MAX_DOCUMENTS = 16
"""Cached documents that a refresh fetches anew, the most recently used ones."""


@attrs.frozen
class AdminGate:
    """Knows the operator by ADMIN_TOKEN.

    :param token: None: there is no way in.
    """

    token: bytes | None = attrs.field(repr=False)

    def admits(self, request: GatewayRequest) -> bool:
        """Whether the operator asks."""
        sent = request.requestHeaders.getRawHeaders(b"Authorization") or []
        if self.token is None or len(sent) != 1:
            return False
        # hashes are compared: neither the time it takes nor a length says how near a guess was
        return hmac.compare_digest(sha256(bearer_token(sent[0])).digest(), sha256(self.token).digest())

    def require(self, request: GatewayRequest) -> None:
        """Let only the operator pass: 401 for everybody else, and 404 where there is no way in."""
        if self.token is None:
            raise not_found("There is nothing here.")
        if not self.admits(request):
            raise ExplorerError(
                401,
                "not the operator",
                "Send Authorization: Bearer with the ADMIN_TOKEN of this service.",
                ((b"WWW-Authenticate", b"Bearer"),),
            )


class RefreshRoute:
    """POST /api/cache/refresh: one refresh for all who ask for one at the same time, and not too often."""

    def __init__(self, parts: ExplorerParts, gate: AdminGate) -> None:
        self._parts = parts
        self._gate = gate
        self._flights: Flights[None, Prepared] = Flights()
        self._started: float | None = None

    async def refresh(self, request: GatewayRequest) -> None:
        """What became of each document: ``{"started", "documents": [{key, outcome, itemCount, error?}]}``."""
        self._gate.require(request)
        if None not in self._flights:
            self._start()
        send(request, await self._flights.result(None, self._refreshed), (NOT_STORED,))

    def _start(self) -> None:
        now = self._parts.now()
        since = PAUSE if self._started is None else now - self._started
        if 0 <= since < PAUSE:
            wait = max(1, round(PAUSE - since))
            raise ExplorerError(
                429,
                "refreshed just now",
                f"There may be one refresh in {PAUSE:.0f} seconds: ask again in {wait}.",
                ((b"Retry-After", b"%d" % wait),),
            )
        self._started = now

    async def _refreshed(self) -> Prepared:
        started = iso_time(self._started)
        fetching = Deferred.fromCoroutine(self._all_fetched())
        await self._parts.refresh_sources()
        outcomes = await fetching
        if all(outcome["outcome"] in ("STALE", "failed") for outcome in outcomes):
            raise ExplorerError(502, "nothing could be fetched", "The platform cannot be reached: ask again later.")
        return Prepared.of_json({"started": started, "documents": outcomes})

    async def _all_fetched(self) -> list[dict[str, Any]]:
        parts = self._parts
        with_key = parts.show_private and parts.api_key_configured
        whole = listing_document(FULL_LISTING, parts.chutes_api_base_url, with_key=with_key)
        listing = await self._outcome(whole, partial(self._fetched, whole) if with_key else self._listing)
        fetching = [
            Deferred.fromCoroutine(self._outcome(document, partial(self._fetched, document)))
            for document in self._documents()
            if document.name not in (whole.name, listing["key"])
        ]
        return [listing, *await gatherResults(fetching)]

    def _documents(self) -> tuple[Document, ...]:
        """What is fetched anew beside the whole list."""
        parts = self._parts
        found = [v1_document(parts.models_url)]
        for entry in parts.documents.cache.entries():
            document = document_of(entry.name, parts.chutes_api_base_url, parts.models_url)
            if document is not None and document not in found and len(found) < MAX_DOCUMENTS - 1:
                found.append(document)
        return tuple(found)

    async def _listing(self) -> tuple[str, ProxiedAnswer]:
        """The whole list as it is merged: of a platform that is closed what the key is shown."""
        listing = await self._parts.published.listing(FULL_LISTING, anew=True)
        document = listing_document(FULL_LISTING, self._parts.chutes_api_base_url, with_key=listing.closed)
        return document.name, listing.answer

    async def _fetched(self, document: Document) -> tuple[str, ProxiedAnswer]:
        answer = await self._parts.documents.get(
            document.name,
            document.url,
            with_key=document.with_key,
            anew=True,
            may_be_missing=document.kind == "chute",
        )
        return document.name, answer

    async def _outcome(
        self, document: Document, fetch: Callable[[], Awaitable[tuple[str, ProxiedAnswer]]]
    ) -> dict[str, Any]:
        try:
            name, answer = await fetch()
        except ProxyError as error:
            return {"key": document.name, "outcome": "failed", "itemCount": None, "error": error.error}
        except CancelledError:  # no visitor's leaving comes here
            return {"key": document.name, "outcome": "failed", "itemCount": None, "error": "the service stops"}
        return {"key": name, "outcome": answer.outcome, "itemCount": answer.items}
