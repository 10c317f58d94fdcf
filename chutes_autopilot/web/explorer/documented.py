"""The endpoints as the predecessor documents them, without its holes: no visitor's text becomes a path upstream."""

from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults

from chutes_autopilot.explorer.cache_names import (
    FULL_LISTING,
    Document,
    chute_document,
    listing_document,
    read_listing_query,
    v1_document,
)
from chutes_autopilot.explorer.export import FORMATS, ExportedSource, documented_export
from chutes_autopilot.explorer.listing import read_listing
from chutes_autopilot.explorer.merge import Merged, merge
from chutes_autopilot.explorer.models import read_models
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.privacy import NotAListing, is_private_chute, public_listing
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


class DocumentedRoutes:
    """Answers from the cache of the platform's documents."""

    def __init__(
        self, parts: ExplorerParts, gate: AdminGate, prepared: PreparedAnswers, catalog: CatalogRoutes
    ) -> None:
        self._parts = parts
        self._gate = gate
        self._prepared = prepared
        self._catalog = catalog
        self._exported: Flights[None, tuple[bytes | None, bytes | None]] = Flights()
        self._counted: Flights[str, int | None] = Flights()
        self._public_items: dict[str, tuple[float, int]] = {}  # by name: when the listing was fetched; public chutes
        self._ids_of: tuple[Merged | None, dict[str, set[str]]] = (None, {})

    async def models(self, request: GatewayRequest) -> None:
        """GET /api/models: a page of the listing."""
        query = read_listing_query(Parameters.decoded(request.args))
        await self._pass_on(request, listing_document(query, self._parts.chutes_api_base_url))

    async def v1_models(self, request: GatewayRequest) -> None:
        """GET /api/models/v1/all: the catalog of language models."""
        await self._pass_on(request, v1_document(self._parts.models_url))

    async def one(self, request: GatewayRequest, chute_id: str) -> None:
        """GET /api/models/{chute_id}: one chute, by its id or by a name that is listed."""
        found = canonical_chute_id(chute_id) or self._id_of(chute_id)
        await self._pass_on(request, chute_document(found, self._parts.chutes_api_base_url))

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
        sees_all = not document.with_key or self._sees_all(request)
        key = (document.name, sees_all, hash(answer.body))
        prepared = await self._prepared.get_by(key, partial(self._visible, document, answer.body, sees_all))
        caching = self._caching(request) if document.with_key else (REVALIDATED,)
        send(request, prepared, (*caching, *_cache_headers(answer, self._parts.documents.duration)))

    async def _answer(self, document: Document) -> ProxiedAnswer:
        is_chute = document.kind == "chute"
        documents = self._parts.documents
        return await documents.get(
            document.name, document.url, with_key=document.with_key, may_be_missing=is_chute, visitor=True
        )

    def _sees_all(self, request: GatewayRequest) -> bool:
        return self._parts.show_private or self._gate.admits(request)

    def _caching(self, request: GatewayRequest) -> tuple[Header, ...]:
        if self._gate.token is None or self._parts.show_private:
            return (REVALIDATED,)
        vary(request, b"Authorization")
        return (_PRIVATE if self._gate.admits(request) else REVALIDATED,)

    async def _visible(self, document: Document, body: bytes, sees_all: bool) -> Prepared:
        try:
            if document.kind == "listing" and not sees_all:
                body, _ = await self._parts.in_thread(public_listing, body)
            elif document.kind == "chute" and not sees_all and is_private_chute(body):
                raise not_found("The platform has no chute of this id.")
        except NotAListing:
            raise _unexpected() from None
        prepared: Prepared = await self._parts.in_thread(Prepared.of, body)
        return prepared

    async def status(self, request: GatewayRequest) -> None:
        """GET /api/cache/status: to others than the operator no number in it tells of private chutes."""
        sees_all = self._sees_all(request)
        listed = self._listed(sees_all)
        counts = [await self._items(entry, sees_all) for entry in listed]
        status = {
            "cacheDuration": int(self._parts.documents.duration),
            "inMemoryEntries": sum(entry.in_memory for entry in listed),
            "diskFiles": sum(entry.on_disk for entry in listed),
            "entries": list(map(self._entry, listed, counts)),
        }
        send(request, Prepared.of_json(status), (NOT_STORED,))

    def _listed(self, sees_all: bool) -> list[CacheEntry]:
        """What is in the cache, as far as the caller may know."""
        return [entry for entry in self._parts.documents.cache.entries() if sees_all or self._is_public(entry)]

    def _is_public(self, entry: CacheEntry) -> bool:
        """Whether an entry says nothing of a chute that may be private."""
        if not entry.name.startswith("chute_"):
            return True
        truth = self._parts.truth()
        return truth is not None and entry.name.removeprefix("chute_").removesuffix(".json") in truth.merged.by_key

    async def _items(self, entry: CacheEntry, sees_all: bool) -> int | None:
        """How many records of an entry the caller may see; None where it would have to be read from disk."""
        if sees_all or not entry.name.startswith("models_"):
            return entry.items
        counted = self._public_items.get(entry.name)
        if counted is not None and counted[0] == entry.fetched_at:
            return counted[1]
        return await self._counted.result(entry.name, partial(self._count_public, entry.name))

    async def _count_public(self, name: str) -> int | None:
        document = self._parts.documents.cache.peek(name)
        if document is None:
            return None
        try:
            _, hidden = await self._parts.in_thread(public_listing, document.data)
        except NotAListing:
            return None
        count: int = document.items - hidden
        kept = {entry.name for entry in self._parts.documents.cache.entries()}
        self._public_items = {each: known for each, known in self._public_items.items() if each in kept}
        self._public_items[name] = document.fetched_at, count
        return count

    def _entry(self, entry: CacheEntry, items: int | None) -> dict[str, Any]:
        age = self._parts.now() - entry.fetched_at
        return {
            "key": entry.name,
            "age": max(0, int(age)),
            "valid": 0 <= age < self._parts.documents.duration,
            "itemCount": items,
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
        listing, models = await self._exported.result(None, self._both)
        sees_all, now, truth = self._sees_all(request), parts.now(), parts.truth()
        moment = int(now // EXPORT_SECONDS)
        snapshot = None if truth is None else truth.id
        key = ("export", sees_all, moment, snapshot, hash(listing), hash(models))
        chutes_source, v1_source = (parts.chutes_api_base_url + "/chutes/", listing), (parts.models_url, models)
        make = partial(_export, chutes_source, v1_source, sees_all, now, snapshot)
        prepared = await self._prepared.get(key, make)
        complete = listing is not None and models is not None
        send(request, prepared, self._caching(request) if complete else (NOT_STORED,))

    async def _both(self) -> tuple[bytes | None, bytes | None]:
        base, models_url = self._parts.chutes_api_base_url, self._parts.models_url
        documents = (listing_document(FULL_LISTING, base), v1_document(models_url))
        listing, models = await gatherResults([Deferred.fromCoroutine(self._had(each)) for each in documents])
        return listing, models

    async def _had(self, document: Document) -> bytes | None:
        try:
            return (await self._answer(document)).body
        except (ProxyError, CancelledError):  # no visitor's leaving comes here: only the service's stop does
            return None


def _export(
    chutes: tuple[str, bytes | None], v1: tuple[str, bytes | None], sees_all: bool, now: float, snapshot: str | None
) -> Prepared:
    listing = models = exported_chutes = exported_v1 = None
    source, body = chutes
    if body is not None:
        try:
            visible = body if sees_all else public_listing(body)[0]
            listing = read_listing(visible, show_private=sees_all)
            exported_chutes = ExportedSource(source, True, len(listing.items), visible)
        except (NotAListing, FeedError):
            listing = None
    source, body = v1
    if body is not None:
        try:
            models = read_models(body)
            exported_v1 = ExportedSource(source, False, len(models.items), body)
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


def _unexpected() -> ExplorerError:
    return ExplorerError(502, "the platform's answer is of another shape", "Ask again later; the log may say more.")
