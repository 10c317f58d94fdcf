"""The sealed transport as the relay sees it: attempts by model, and what keeps sessions ready for them."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from chutes_autopilot.e2ee.chute import read_wishes
from chutes_autopilot.e2ee.receipt import Attested
from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver, IUpstreamAttempt
from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.policy.model_field import base_of
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.chute_e2ee.attempt import ChuteAttempt
from chutes_autopilot.upstream.chute_e2ee.budget import DiscoveryBudget
from chutes_autopilot.upstream.chute_e2ee.discovery import Discovery, FetchListing, Listed
from chutes_autopilot.upstream.chute_e2ee.link import AttestedOf, ChuteCall, ChuteLink, ChuteTerms, InThread
from chutes_autopilot.upstream.chute_e2ee.listing import MAX_LISTING_BYTES, Instance
from chutes_autopilot.upstream.chute_e2ee.pools import Pools, Usable
from chutes_autopilot.upstream.chute_e2ee.refusals import refusal
from chutes_autopilot.upstream.chute_e2ee.sessions import Sessions
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.fetch import FetchedAnswer, fetch_answer
from chutes_autopilot.upstream.pool import ConnectionPool, backend_from_url

DISCOVERY_TIMEOUT = 15.0
"""Seconds a listing may take; requests wait less, the listing then serves later ones."""

_CHUTE_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_THINKING = ":THINKING"


def listings_from(http_client: Any, base_url: str, api_key: str, clock: IReactorTime) -> FetchListing:
    """Brings listings of instances from the API, with the operator's key.

    :param http_client: a treq.client.HTTPClient.
    :param base_url: of the API.
    """
    base_url = base_url.rstrip("/")
    headers = (("Authorization", f"Bearer {api_key}"),)

    async def fetch(chute_id: str) -> FetchedAnswer:
        url = f"{base_url}/e2e/instances/{chute_id}"
        return await fetch_answer(
            http_client, url, clock=clock, timeout=DISCOVERY_TIMEOUT, max_bytes=MAX_LISTING_BYTES, headers=headers
        )

    return fetch


class ChuteTransport:
    """Everything between the relay and the instances of chutes.

    :param fetch: brings listings; see `listings_from`.
    :param monotonic: the clock of the nonces' deadlines, such as time.monotonic.
    :param random: evenly distributed in [0, 1).
    :param chute_of: the chute that serves exactly this model id, by the catalog; None where there is none. It does not
        look behind the platform's suffixes: that is done here.
    :param usable: the verdict on an instance and its key; with attestation off, always True.
    :param counted: told one of chute_errors.CODES for everything that was refused, for metrics and log.
    :param refresh_catalog: called when the API does not know a chute of the catalog any more.
    :param listed: told of every listing's instances, for whoever attests them.
    :param attested: what that came to for an instance and its key right now.
    """

    def __init__(
        self,
        terms: ChuteTerms,
        base_url: str,
        fetch: FetchListing,
        connections: ConnectionPool,
        deadlines: Deadlines,
        clock: IReactorTime,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        in_thread: InThread,
        chute_of: Callable[[str], str | None],
        *,
        usable: Usable = lambda instance_id, key_sha256: True,
        counted: Callable[[str], None] = lambda code: None,
        refresh_catalog: Callable[[], None] = lambda: None,
        listed: Listed = lambda chute_id, instances: None,
        attested: AttestedOf = lambda instance_id, key_sha256: Attested("off"),
    ) -> None:
        self.terms = terms
        self._chute_of = chute_of
        pools = Pools(usable)
        budget = DiscoveryBudget(terms.discovery_rpm, random, terms.discovery_turn)
        discovery = Discovery(fetch, pools, budget, clock, monotonic, terms.nonce_margin, counted, listed)
        sessions = Sessions(pools, discovery, budget, clock, monotonic)
        self._link = ChuteLink(
            connections=connections,
            backend=backend_from_url(base_url),
            deadlines=deadlines,
            pools=pools,
            discovery=discovery,
            sessions=sessions,
            monotonic=monotonic,
            in_thread=in_thread,
            counted=counted,
            refresh_catalog=refresh_catalog,
            attested=attested,
            clock=clock,
        )

    def open(
        self, model: str, request: UpstreamRequest, header_timeout: float, observer: IAttemptObserver
    ) -> IUpstreamAttempt:
        """An attempt, not yet started: a ChuteAttempt, or one that only says why there can be none.

        Of ``request`` the body alone is used; whatever else the client sent goes no further.
        """
        found = self._served(model)
        if found is None:
            return RefusedAttempt(refusal("no_session", retry=True, reason="chute_gone"), observer)
        name, chute_id = found
        body = b"".join(request.body)
        try:
            wishes = read_wishes(body)
        except ApiError as error:
            return RefusedAttempt(Refused(error, False, "request_refused"), observer)
        call = ChuteCall(chute_id, name, model != name and model.endswith(_THINKING), body, wishes)
        return ChuteAttempt(self._link, self.terms, call, header_timeout, observer)

    def prefetch(self, models: Iterable[str], most: int = 1) -> None:
        """Fill the pools of the first of these models that can be asked for now, as far as the budget allows.

        :param most: how many; for the likeliest ones only.
        """
        for model in models:
            found = self._served(model)
            if found is not None and self._link.sessions.prefetch(found[1]):
                most -= 1
            if most < 1:
                return

    def has_session(self, model: str) -> bool:
        """Whether a request for the model could be sent without waiting; a reason to prefer it among equals."""
        found = self._served(model)
        return found is not None and self._link.sessions.available(found[1])

    def obstacle(self, model: str) -> str | None:
        """Why a request for the model would be refused at once, one of chute_errors.CODES; None where it may be sent.

        A refusal of the operator's key is none: it is not the model's.
        """
        found = self._served(model)
        return "chute_gone" if found is None else self._link.sessions.obstacle(found[1], self.terms.discovery_wait)

    def instances(self) -> Iterator[tuple[str, Instance]]:
        """Every instance known now, with the chute it was listed for: what there is to attest."""
        for chute_id, pool in self._link.pools.items():
            for instance in pool.instances():
                yield chute_id, instance

    def catalog_refreshed(self) -> None:
        """A new catalog is in force: chutes that the API did not know are asked about again."""
        self._link.discovery.catalog_refreshed()

    def retire(self) -> None:
        """End discoveries and timers; whoever waits for a session is refused."""
        self._link.sessions.retire()

    def _served(self, model: str) -> tuple[str, str] | None:
        """The model's id in the catalog, without the platform's suffixes where it has some, and its chute."""
        for name in (model, model.removesuffix(_THINKING), base_of(model, frozenset())):
            chute_id = self._chute_of(name)
            if chute_id is not None and _CHUTE_ID.fullmatch(chute_id):
                return name, chute_id
        return None


@implementer(IUpstreamAttempt)
class RefusedAttempt:
    """An attempt that cannot be made; it says so when it is started."""

    def __init__(self, why: Refused, observer: IAttemptObserver) -> None:
        self._why = why
        self.observer = observer

    def start(self) -> None:
        """Report the refusal."""
        self.observer.failed(self._why)

    def expect_body(self, timeout: float) -> None:
        """There is none."""

    def pause(self) -> None:
        """Nothing is read."""

    def resume(self) -> None:
        """Nothing is read."""

    def abort(self) -> None:
        """Nothing goes on."""
