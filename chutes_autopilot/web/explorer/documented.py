"""The endpoints as the predecessor documents them, without its holes: no visitor's text becomes a path upstream."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

from chutes_autopilot.explorer.cache_names import (
    FULL_LISTING,
    Document,
    chute_document,
    is_open,
    listing_document,
    read_listing_query,
    v1_document,
)
from chutes_autopilot.explorer.export import FORMATS, ExportedSource, documented_export
from chutes_autopilot.explorer.listing import read_listing
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import read_models
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.privacy import NotAListing, is_private_chute
from chutes_autopilot.explorer.readable import without_gaps
from chutes_autopilot.explorer.records import canonical_chute_id
from chutes_autopilot.explorer_live.proxied import ProxiedAnswer, ProxyError
from chutes_autopilot.policy.feed_json import FeedError
from chutes_autopilot.storage.disk_cache import CacheEntry
from chutes_autopilot.web.explorer.admin import AdminGate
from chutes_autopilot.web.explorer.answers import (
    REVALIDATED,
    Prepared,
    PreparedAnswers,
    attachment,
    iso_time,
    send,
    vary,
)
from chutes_autopilot.web.explorer.catalog import CatalogRoutes
from chutes_autopilot.web.explorer.errors import JSON, NOT_STORED, ExplorerError, not_found
from chutes_autopilot.web.explorer.flights import Flights
from chutes_autopilot.web.explorer.parts import ExplorerParts
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import Header

EXPORT_SECONDS = 10
"""How long one export is sent to all who ask for it."""

_PRIVATE: Header = (b"Cache-Control", b"private, no-cache")

T = TypeVar("T")


_Shown = tuple[bytes, Callable[[], bytes]]
"""A body of the platform, and what makes of it what is shown."""


class DocumentedRoutes:
    """Answers from the cache of the platform's documents."""

    def __init__(
        self, parts: ExplorerParts, gate: AdminGate, prepared: PreparedAnswers, catalog: CatalogRoutes
    ) -> None:
        self._parts = parts
        self._gate = gate
        self._prepared = prepared
        self._catalog = catalog
        self._exported: Flights[bool, tuple[_Shown | None, bytes | None]] = Flights()
        self._ids_of: tuple[Merged | None, dict[str, set[str]]] = (None, {})

    async def models(self, request: GatewayRequest) -> None:
        """GET /api/models: a page of the listing."""
        query, parts = read_listing_query(Parameters.decoded(request.args)), self._parts
        if self._with_key(request):
            await self._pass_on(request, listing_document(query, parts.chutes_api_base_url, with_key=True))
            return
        listing = await parts.published.listing(query, visitor=True)
        await self._send(request, listing.name, listing.answer, listing.visible, self._caching(request))

    async def v1_models(self, request: GatewayRequest) -> None:
        """GET /api/models/v1/all: the catalog of language models."""
        await self._pass_on(request, v1_document(self._parts.models_url))

    async def one(self, request: GatewayRequest, chute_id: str) -> None:
        """GET /api/models/{chute_id}: one chute, by its id or by a name that is listed."""
        found, parts = canonical_chute_id(chute_id) or self._id_of(chute_id), self._parts
        document = chute_document(found, parts.chutes_api_base_url, with_key=self._with_key(request))
        if document.with_key:
            await self._pass_on(request, document)
            return
        truth = parts.truth()
        answer = await parts.published.chute(found, is_listed=truth is not None and found in truth.merged.by_key)
        await self._send(request, document.name, answer, partial(_public_chute, answer.body), self._caching(request))

    def _id_of(self, name: str) -> str:
        truth = self._parts.truth()
        merged = None if truth is None else truth.merged
        if self._ids_of[0] is not merged:
            self._ids_of = (merged, _ids_by_name(merged))
        ids = self._ids_of[1].get(name, set())
        if len(ids) > 1:
            raise not_found("Several chutes have this name: ask for one of them by its chute_id.")
        if not ids:
            raise not_found("No chute of this id or name is listed; GET /api/catalog lists all.")
        return next(iter(ids))

    async def _pass_on(self, request: GatewayRequest, document: Document) -> None:
        answer = await self._answer(document)
        caching = (REVALIDATED,) if document.kind == "v1" else self._caching(request)
        await self._send(request, document.name, answer, partial(without_gaps, answer.body), caching)

    async def _send(
        self,
        request: GatewayRequest,
        name: str,
        answer: ProxiedAnswer,
        visible: Callable[[], bytes],
        caching: tuple[Header, ...],
    ) -> None:
        try:
            prepared = await self._prepared.get((name, hash(answer.body)), lambda: Prepared.of(visible()))
        except NotAListing:
            raise _unexpected() from None
        send(request, prepared, (*caching, *_cache_headers(answer, self._parts.documents.duration)))

    async def _answer(self, document: Document) -> ProxiedAnswer:
        return await self._parts.documents.get(
            document.name,
            document.url,
            with_key=document.with_key,
            may_be_missing=document.kind == "chute",
            visitor=True,
        )

    def _with_key(self, request: GatewayRequest) -> bool:
        """Whether the platform is asked with the operator's key: for those alone who may see all that it shows."""
        return self._parts.api_key_configured and self._sees_all(request)

    def _sees_all(self, request: GatewayRequest) -> bool:
        return self._parts.show_private or self._gate.admits(request)

    def _caching(self, request: GatewayRequest) -> tuple[Header, ...]:
        if self._gate.token is None or self._parts.show_private:
            return (REVALIDATED,)
        vary(request, b"Authorization")
        return (_PRIVATE if self._gate.admits(request) else REVALIDATED,)

    async def status(self, request: GatewayRequest) -> None:
        """GET /api/cache/status: to others than the operator no number in it tells of private chutes."""
        listed = self._listed(self._sees_all(request))
        status = {
            "cacheDuration": int(self._parts.documents.duration),
            "inMemoryEntries": sum(entry.in_memory for entry in listed),
            "diskFiles": sum(entry.on_disk for entry in listed),
            "entries": list(map(self._entry, listed)),
        }
        send(request, Prepared.of_json(status), (NOT_STORED,))

    def _listed(self, sees_all: bool) -> list[CacheEntry]:
        """What is in the cache, as far as the caller may know."""
        return [entry for entry in self._parts.documents.cache.entries() if sees_all or is_open(entry.name)]

    def _entry(self, entry: CacheEntry) -> dict[str, Any]:
        age = self._parts.now() - entry.fetched_at
        return {
            "key": entry.name,
            "age": max(0, int(age)),
            "valid": 0 <= age < self._parts.documents.duration,
            "itemCount": entry.items,
            "size": entry.size,
            "inMemory": entry.in_memory,
            "onDisk": entry.on_disk,
        }

    async def health(self, request: GatewayRequest) -> None:
        """GET /api/health: always 200; ``status`` is ``degraded`` while some source is old or missing."""
        parts = self._parts
        truth = parts.truth()
        freshness = {} if truth is None else truth.freshness
        degraded = truth is None or any(source.stale or source.fetched_at is None for source in freshness.values())
        health = {
            "status": "degraded" if degraded else "ok",
            "timestamp": iso_time(parts.now()),
            "apiKeyConfigured": parts.api_key_configured,
            "baseUrl": parts.chutes_api_base_url,
            "cache": {
                "duration": f"{parts.documents.duration:.0f} seconds",
                "inMemoryEntries": sum(entry.in_memory for entry in self._listed(self._sees_all(request))),
            },
            "snapshot": None if truth is None else truth.id,
            "sources": {
                source: {"fetchedAt": each.fetched_at, "stale": each.stale} for source, each in freshness.items()
            },
        }
        send(request, Prepared.of_json(health), (NOT_STORED,))

    async def export(self, request: GatewayRequest) -> None:
        """GET /api/export/data: the documented object, or the merged models as a file of another format."""
        given = Parameters.decoded(request.args)
        format = given.word("format", FORMATS) or "json"
        if format != "json":
            await self._catalog.index(request)
            return
        given.refuse_others(("format",))
        parts = self._parts
        with_key = self._with_key(request)
        listing, models = await self._exported.result(with_key, partial(self._both, with_key))
        now, truth = parts.now(), parts.truth()
        moment = int(now // EXPORT_SECONDS)
        snapshot = None if truth is None else truth.id
        key = ("export", with_key, moment, snapshot, hash(listing and listing[0]), hash(models))
        chutes_source, v1_source = (parts.chutes_api_base_url + "/chutes/", listing), (parts.models_url, models)
        make = partial(_export, chutes_source, v1_source, now, snapshot)
        prepared = await self._prepared.get(key, make)
        complete = listing is not None and models is not None
        send(request, prepared, self._caching(request) if complete else (NOT_STORED,))

    async def _both(self, with_key: bool) -> tuple[_Shown | None, bytes | None]:
        listing = Deferred.fromCoroutine(_had(self._all_listed(with_key)))
        models = await _had(self._answer(v1_document(self._parts.models_url)))
        return await listing, None if models is None else models.body

    async def _all_listed(self, with_key: bool) -> _Shown:
        if not with_key:
            listing = await self._parts.published.listing(FULL_LISTING, visitor=True)
            return listing.answer.body, listing.visible
        answer = await self._answer(listing_document(FULL_LISTING, self._parts.chutes_api_base_url, with_key=True))
        return answer.body, partial(without_gaps, answer.body)


async def _had(asked: Coroutine[Any, Any, T]) -> T | None:
    try:
        return await asked
    except (ProxyError, CancelledError):  # no visitor's leaving comes here: only the service's stop does
        return None


def _export(
    chutes: tuple[str, _Shown | None], v1: tuple[str, bytes | None], now: float, snapshot: str | None
) -> Prepared:
    listing = models = exported_chutes = exported_v1 = None
    source, shown = chutes
    if shown is not None:
        try:
            visible = shown[1]()
            listing = read_listing(visible, show_private=True)
            exported_chutes = ExportedSource(source, True, len(listing.items), visible)
        except (NotAListing, FeedError):
            listing = None
    source, body = v1
    if body is not None:
        try:
            shown_v1 = without_gaps(body)
            models = read_models(shown_v1)
            exported_v1 = ExportedSource(source, False, len(models.items), shown_v1)
        except FeedError:
            models = None
    merged = merge(listing, models, None) if listing and models else None
    exported = documented_export(iso_time(now) or "", exported_chutes, exported_v1, merged, snapshot)
    return Prepared.of(exported, JSON, (attachment(f"chutes-models-export-{round(now * 1000)}.json"),))


def _ids_by_name(merged: Merged | None) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {}
    for record in merged.records if merged else ():
        if record.chute_id is not None:
            for name in {record.name, record.v1_id, record.chutes_name} - {None}:
                ids.setdefault(str(name), set()).add(record.chute_id)
    return ids


def _cache_headers(answer: ProxiedAnswer, duration: float) -> tuple[Header, ...]:
    return (
        (b"X-Cache", answer.outcome.encode()),
        (b"X-Cache-Age", b"%d" % answer.age),
        (b"X-Cache-Duration", b"%d" % int(duration)),
    )


def _public_chute(body: bytes) -> bytes:
    if is_private_chute(body):
        raise not_found("The platform has no chute of this id.")
    return body


def _unexpected() -> ExplorerError:
    return ExplorerError(502, "the platform's answer is of another shape", "Ask again later; the log may say more.")
