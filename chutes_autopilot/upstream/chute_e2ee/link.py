"""What all attempts over the sealed transport have in common, and what makes one of them different."""

from collections.abc import Callable
from typing import Any, Literal

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from chutes_autopilot.e2ee.chute import Wishes
from chutes_autopilot.e2ee.receipt import Attested
from chutes_autopilot.upstream.chute_e2ee.budget import ALONE, Turn
from chutes_autopilot.upstream.chute_e2ee.discovery import Discovery
from chutes_autopilot.upstream.chute_e2ee.pools import Pools
from chutes_autopilot.upstream.chute_e2ee.sessions import Sessions
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.pool import Backend, ConnectionPool

InThread = Callable[[Callable[[], Any]], Deferred[Any]]
"""Runs work in a thread, as ``partial(deferToThreadPool, reactor, pool)`` does."""

AttestedOf = Callable[[str, bytes], Attested | None]


@frozen
class ChuteTerms:
    """What the operator sets of the transport; sizes in bytes, times in seconds.

    :param discovery_rpm: calls for instances in one minute, of all processes that take turns.
    :param discovery_wait: how long a request waits for a session.
    :param nonce_margin: nonces are not used so close to their expiry.
    :param instance_429: what an instance that is full means: an answer, or another instance of the same chute.
    :param max_instance_tries: instances asked in one attempt.
    :param max_response_bytes: of an answer that is no stream, sealed and clear.
    :param max_event_bytes: of one event of a stream, outer or inner.
    :param max_records: of one stream.
    """

    api_key: str = field(repr=False)
    discovery_rpm: int = 6
    discovery_turn: Turn = ALONE
    discovery_wait: float = 5.0
    nonce_margin: float = 5.0
    instance_429: Literal["relay", "next-instance"] = "relay"
    max_instance_tries: int = 2
    max_response_bytes: int = 8 * 1024 * 1024
    max_event_bytes: int = 4 * 1024 * 1024
    max_records: int = 1_000_000


@frozen
class ChuteLink:
    """What attempts use; one for the life of the service.

    :param counted: told the code of everything that was refused, also where another try follows.
    :param refresh_catalog: called when the API does not know a chute any more.
    :param attested: what is known of an instance's key right now, by the instance's id and the key's hash.
    :param clock: gives the reactor its turns.
    """

    connections: ConnectionPool
    backend: Backend
    deadlines: Deadlines
    pools: Pools
    discovery: Discovery
    sessions: Sessions
    monotonic: Callable[[], float]
    in_thread: InThread
    counted: Callable[[str], None]
    refresh_catalog: Callable[[], None]
    attested: AttestedOf
    clock: IReactorTime


@frozen
class ChuteCall:
    """A chat request on its way to one chute.

    :param model: the chute's model id.
    :param thinking: whether the client's name for it turned thinking on.
    :param body: the request's JSON object, in clear.
    """

    chute_id: str
    model: str
    thinking: bool
    body: bytes = field(repr=False)
    wishes: Wishes
