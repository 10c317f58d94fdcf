"""What anybody may see of the platform. It is asked without the operator's key, so that nothing depends on that key.

To take private chutes out of an answer to the key is not enough: the total, the empty places of a page, the chutes that
moved on to the next one, the size, and what was cached or missing still tell of them. Where the platform answers nobody
without a key, visitors get pages cut out of the whole list that the key is shown, once only its public chutes are left.
The whole list is 5000 chutes at most: among more, private ones would still take up places.

What a visitor asks for may be refused by itself, so that says nothing of the platform. After a refusal it is therefore
asked for the whole list, whose address nobody chooses::

    refused ──▶ the whole list without the key ──▶ refused ──▶ closed: for a while the key is used
                                                ├▶ answered ─▶ open: an old answer, or the refusal
                                                └▶ failed ───▶ not known: an old answer, or that failure
"""

from collections.abc import Callable
from contextlib import suppress

from attrs import define, evolve, field, frozen

from chutes_autopilot.explorer.cache_names import (
    FULL_LISTING,
    MAX_LIMIT,
    Document,
    ListingQuery,
    chute_document,
    listing_document,
)
from chutes_autopilot.explorer.privacy import NotAListing, public_listing, public_page
from chutes_autopilot.explorer_live.proxied import PlatformRefuses, ProxiedAnswer, ProxiedJson, ProxyError
from chutes_autopilot.storage.disk_cache import InThread

CLOSED_SECONDS = 600.0
"""How long a platform that refused to answer without a key is not asked without one again."""

OPEN_SECONDS = 60.0
"""How long a platform that answered the whole list without a key is not asked for it again after another refusal."""


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
    _open_at: float | None = field(init=False, default=None)

    async def listing(
        self, query: ListingQuery, *, visitor: bool = False, fresh: bool = False, anew: bool = False
    ) -> PublishedListing:
        """A page of the listing; the options are those of ProxiedJson.get, as are its errors."""
        how = {"fresh": fresh, "anew": anew}
        document = listing_document(query, self._base)
        answer = await self._without_key(document, visitor, **how)
        if answer is not None:
            return PublishedListing(document.name, answer, False, query)
        whole = listing_document(evolve(query, page=0, limit=MAX_LIMIT), self._base, with_key=True)
        answer = await self._documents.get(whole.name, whole.url, with_key=True, visitor=visitor, **how)
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
        answer = await self._without_key(chute_document(chute_id, self._base), True, may_be_missing=True)
        if answer is not None:
            return answer
        if not is_listed:
            raise _no_such_chute()
        document = chute_document(chute_id, self._base, with_key=True)
        return await self._documents.get(document.name, document.url, with_key=True, may_be_missing=True, visitor=True)

    async def _without_key(self, document: Document, visitor: bool, **how: bool) -> ProxiedAnswer | None:
        """What everybody gets; None where the platform is closed and there is a key to ask with.

        :raises ProxyError: there is no answer; 404 for a chute that an open platform refuses.
        """
        if self._has_key and self._is_closed():
            return None
        old: ProxiedAnswer | None = None
        with suppress(PlatformRefuses):
            old = await self._documents.get(document.name, document.url, visitor=visitor, **how)
            if not old.refused:
                return old
        is_chute = document.kind == "chute"
        try:
            closed = await self._find_closed(document, visitor)
        except ProxyError:
            if old is None or is_chute:
                raise
            return old
        if closed and self._has_key:
            return None
        if is_chute and not closed:  # it may have become private, so that an old answer is nobody's any more
            raise _no_such_chute()
        if old is not None:
            return old
        if closed:
            raise ProxyError(503, "the platform refuses to answer", "The operator must set CHUTES_API_KEY.")
        raise ProxyError(502, "the platform refuses this", "Ask for something else, or again later.")

    async def _find_closed(self, refused: Document, visitor: bool) -> bool:
        """Whether a platform that refused this refuses everything; raises ProxyError where that is not known."""
        whole = listing_document(FULL_LISTING, self._base)
        if refused != whole:
            if self._is_closed():
                return True
            if self._within(self._open_at, OPEN_SECONDS):
                return False
            try:
                answer = await self._documents.get(whole.name, whole.url, visitor=visitor, fresh=True)
            except PlatformRefuses:
                pass
            else:
                if answer.outcome == "STALE" and not answer.refused:
                    raise ProxyError(502, "the platform cannot be reached", "Ask again in a moment.")
                if not answer.refused:
                    self._open_at = self._now()
                    return False
        self._closed_at, self._open_at = self._now(), None
        return True

    def _is_closed(self) -> bool:
        return self._within(self._closed_at, CLOSED_SECONDS)

    def _within(self, at: float | None, seconds: float) -> bool:
        return at is not None and 0 <= self._now() - at < seconds


def _no_such_chute() -> ProxyError:
    return ProxyError(404, "not found", "The platform has no chute of this id.")
