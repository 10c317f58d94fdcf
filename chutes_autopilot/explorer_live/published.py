"""What anybody may see of the platform. It is asked without the operator's key, so that nothing depends on that key.

To take private chutes out of an answer to the key is not enough: the total, the empty places of a page, the chutes that
moved on to the next one, the size, and what was cached or missing still tell of them. Where the platform answers nobody
without a key, visitors get pages cut out of the whole list that the key is shown, once only its public chutes are left.
The whole list is 5000 chutes at most: among more, private ones would still take up places.
"""

from collections.abc import Callable

from attrs import define, evolve, field, frozen

from chutes_autopilot.explorer.cache_names import (
    FULL_LISTING,
    MAX_LIMIT,
    ListingQuery,
    chute_document,
    listing_document,
)
from chutes_autopilot.explorer.privacy import NotAListing, public_listing, public_page
from chutes_autopilot.explorer_live.proxied import PlatformRefuses, ProxiedAnswer, ProxiedJson, ProxyError
from chutes_autopilot.storage.disk_cache import InThread

CLOSED_SECONDS = 600.0
"""How long a platform that refused to answer without a key is not asked without one again."""


@frozen
class PublishedListing:
    """A page of the listing, and how to read it.

    :param name: tells it from other pages, together with its body.
    :param closed: ``answer`` is the whole list that the operator's key is shown.
    """

    name: str
    answer: ProxiedAnswer
    closed: bool
    _query: ListingQuery

    def visible(self) -> bytes:
        """What a visitor gets of it; takes some milliseconds per MB.

        :raises privacy.NotAListing: it is of another shape.
        """
        if self.closed:
            return public_page(self.answer.body, self._query.page, self._query.limit)
        return public_listing(self.answer.body)


@define(eq=False)
class Published:
    """The platform's documents for those who may be anybody.

    :param base: CHUTES_API_BASE_URL.
    :param has_key: whether there is a CHUTES_API_KEY.
    :param show_private: everybody may see what the key is shown.
    :param now: Unix time, seconds.
    :param in_thread: where long lists are read.
    """

    _documents: ProxiedJson
    _base: str
    _has_key: bool
    _show_private: bool
    _now: Callable[[], float]
    _in_thread: InThread
    _closed_at: float | None = field(init=False, default=None)

    async def listing(
        self, query: ListingQuery, *, visitor: bool = False, fresh: bool = False, anew: bool = False
    ) -> PublishedListing:
        """A page of the listing; the options are those of ProxiedJson.get, as are its errors."""
        how = {"visitor": visitor, "fresh": fresh, "anew": anew}
        if not self._is_closed():
            document = listing_document(query, self._base)
            try:
                answer = await self._documents.get(document.name, document.url, **how)
                return PublishedListing(document.name, answer, False, query)
            except PlatformRefuses:
                self._close()
        whole = listing_document(evolve(query, page=0, limit=MAX_LIMIT), self._base, with_key=True)
        answer = await self._documents.get(whole.name, whole.url, with_key=True, **how)
        return PublishedListing(query.file_name, answer, True, query)

    async def whole(self, *, fresh: bool = False, anew: bool = False) -> ProxiedAnswer:
        """All chutes at once, as they are merged: of a platform that is closed its public ones; raises ProxyError."""
        if self._show_private and self._has_key:
            document = listing_document(FULL_LISTING, self._base, with_key=True)
            return await self._documents.get(document.name, document.url, with_key=True, fresh=fresh, anew=anew)
        listing = await self.listing(FULL_LISTING, fresh=fresh, anew=anew)
        if not listing.closed:
            return listing.answer
        try:
            return evolve(listing.answer, body=await self._in_thread(listing.visible))
        except NotAListing:
            return listing.answer  # whoever reads it finds that too

    async def chute(self, chute_id: str, *, is_listed: bool) -> ProxiedAnswer:
        """One chute, for a visitor.

        :param is_listed: whether the chute is known to everybody, as others are not asked for with the key.
        """
        if not self._is_closed():
            document = chute_document(chute_id, self._base)
            try:
                return await self._documents.get(document.name, document.url, may_be_missing=True, visitor=True)
            except PlatformRefuses:
                self._close()
        if not is_listed:
            raise ProxyError(404, "not found", "The platform has no chute of this id.")
        document = chute_document(chute_id, self._base, with_key=True)
        return await self._documents.get(document.name, document.url, with_key=True, may_be_missing=True, visitor=True)

    def _is_closed(self) -> bool:
        return self._closed_at is not None and 0 <= self._now() - self._closed_at < CLOSED_SECONDS

    def _close(self) -> None:
        if not self._has_key:
            raise ProxyError(503, "the platform refuses to answer", "The operator must set CHUTES_API_KEY.") from None
        self._closed_at = self._now()
