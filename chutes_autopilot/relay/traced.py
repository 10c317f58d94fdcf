"""The relay with tracing on: each request has its spans, and each attempt names its own to the upstream."""

import re
from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.python.failure import Failure

from chutes_autopilot.errors import ApiError
from chutes_autopilot.interfaces import IAttemptObserver, IDownstream, IUpstreamAttempt
from chutes_autopilot.observe import events
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.relay.call import ChatCall
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.relay.exchange import Exchange, OpenUpstream
from chutes_autopilot.relay.recall import RecalledExchange
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.wire.body import ChatBody

_TRACE_LINES = re.compile(rb"^(?:traceparent|tracestate):.*\r\n", re.IGNORECASE | re.MULTILINE)


class SpansOfRequest(Protocol):
    """What of observe.tracing.RequestTrace is used here, which cannot be imported without the extra."""

    def attempt(self, attempt: AttemptRecord, now: float) -> bytes:
        """Header lines for the upstream."""

    def finish(self, record: RequestRecord) -> None:
        """All is over."""


Begin = Callable[[str, str, float, bytes | None, bytes | None], SpansOfRequest]
"""Makes the spans of a request: its path and endpoint, when it was received, the client's traceparent and tracestate.
"""


@attrs.define(eq=False)
class TracedRelay(ChatRelay):
    """A relay whose requests are traced; those whose attempts are not its own (of the Chutes route) name nothing to
    the upstream, which learns nothing of their clients."""

    begin_trace: Begin = attrs.field(kw_only=True)
    _traces: dict[RequestRecord, SpansOfRequest] = attrs.field(factory=dict, init=False)
    _opening: SpansOfRequest | None = attrs.field(default=None, init=False)

    def open(
        self,
        call: ChatCall,
        downstream: IDownstream,
        ended: Callable[[RequestRecord, ApiError | None], None],
        open_upstream: OpenUpstream | None = None,
        read: ChatBody | None = None,
    ) -> Exchange | RecalledExchange:
        endpoint, client, now = self.endpoint, call.client, self.clock.seconds()
        trace = self.begin_trace(endpoint.path.decode(), endpoint.name, now, client.traceparent, client.tracestate)
        self._opening = trace
        try:
            exchange = ChatRelay.open(self, call, downstream, ended, open_upstream, read)
        finally:
            self._opening = None
        make, tell = exchange.open_upstream, open_upstream is None

        def traced(
            model: str, request: UpstreamRequest, header_timeout: float, observer: IAttemptObserver
        ) -> IUpstreamAttempt:
            record = exchange.record
            lines = trace.attempt((record.continuations or record.attempts)[-1], self.clock.seconds())
            if lines and tell:
                request.fields = _TRACE_LINES.sub(b"", request.fields) + lines
            return make(model, request, header_timeout, observer)

        exchange.open_upstream = traced
        self._traces[exchange.record] = trace
        return exchange

    def finished(self, record: RequestRecord) -> None:
        ChatRelay.finished(self, record)
        try:
            trace = self._traces.pop(record, None) or self._opening
            if trace is None:  # refused before all of it was read
                path = self.endpoint.path.decode()
                trace = self.begin_trace(path, self.endpoint.name, record.received, None, None)
            trace.finish(record)
        except Exception:  # noqa: BLE001 - the client gets its answer all the same
            events.failed_unexpectedly(Failure(), "tracing a request")
