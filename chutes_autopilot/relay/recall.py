"""A request of a client that is unknown here, and perhaps known to another replica."""

from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chutes_autopilot.errors import ApiError, internal_error
from chutes_autopilot.observe import events
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.policy.stickiness import StickyChoice
from chutes_autopilot.relay.exchange import Exchange, OpenUpstream

Recall = Callable[[bytes, bool], Deferred[StickyChoice | None] | None]
"""Asks for the choice of a client, by its key; None where what this replica knows (or not: the second argument) is all
there is to know. The Deferred never fails and does not last."""


@attrs.define(eq=False)
class RecalledExchange:
    """Waits a moment for what other replicas know before an exchange begins; by then it may be another one.

    :param exchange: by what is known here; not started.
    :param recalling: has the client's choice, which the relay's store has as well by then.
    :param again: makes the exchange anew, for the same request; may raise ApiError.
    """

    _exchange: Exchange
    _recalling: Deferred[StickyChoice | None]
    _again: Callable[[], Exchange]

    @property
    def record(self) -> RequestRecord:
        """What happened so far."""
        return self._exchange.record

    @property
    def open_upstream(self) -> OpenUpstream:
        """What makes the attempts; may be replaced before the first one."""
        return self._exchange.open_upstream

    @open_upstream.setter
    def open_upstream(self, open_upstream: OpenUpstream) -> None:
        self._exchange.open_upstream = open_upstream

    @property
    def model(self) -> str:
        """The ``model`` value of the client."""
        return self._exchange.model

    def start(self) -> None:
        """Begin the first attempt as soon as it is known at which model."""
        self._recalling.addCallback(self._recalled)

    def client_gone(self) -> None:
        """See Exchange."""
        self._exchange.client_gone()

    def _recalled(self, choice: StickyChoice | None) -> None:
        if self._exchange.record.outcome is not None:  # the client has left
            return
        try:
            if choice != self._exchange.previous:
                open_upstream = self._exchange.open_upstream
                self._exchange = self._again()
                self._exchange.open_upstream = open_upstream
        except ApiError as error:
            self._exchange.refuse(error)
        except Exception:  # noqa: BLE001 - reported
            events.failed_unexpectedly(Failure(), "routing a request again")
            self._exchange.refuse(internal_error())
        else:
            self._exchange.start()
