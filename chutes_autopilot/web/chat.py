"""The relayed endpoints over twisted.web, chat first of all: the reference behaviour of the relay's downstream side."""

import attrs
from twisted.internet.defer import Deferred

from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.relay.call import ChatCall, Client, peer_of
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.relay.endpoint import MESSAGES
from chutes_autopilot.web.downstream import RequestDownstream
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import EXPLAIN, header_lines, upstream_request_headers


@attrs.define(eq=False)
class ChatRoute:
    """Answers the requests of one endpoint that twisted.web has read."""

    relay: ChatRelay

    def answer(self, request: GatewayRequest) -> Deferred[None]:
        """Relay the request; fires when the answer was relayed, fails with the ApiError to answer with.

        Where the answer was cut the Deferred stays silent, so that nobody ends it cleanly; Klein cancels it when
        the connection is gone.
        """

        def ended(record: RequestRecord, error: ApiError | None) -> None:
            if error is not None:
                done.errback(error)
            elif record.outcome == "complete":
                done.callback(None)

        received = [(name, value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values]
        call = ChatCall(
            request.method,
            request.uri,
            header_lines(upstream_request_headers(received, request.request_id)),
            request.take_body(),
            request.request_id,
            client_of(request),
        )
        exchange = self.relay.open(call, RequestDownstream(request), ended)
        done: Deferred[None] = Deferred(lambda _: exchange.client_gone())
        exchange.start()
        return done


def client_of(request: GatewayRequest) -> Client:
    """Who sends it, as far as it says so.

    Clients of the Messages API send their key as ``x-api-key``. Elsewhere that header says nothing, for nobody looks
    at it there; one who asks for the record of such a request (web.decisions) sends it as he did then.
    """
    authorization = request.getHeader(b"authorization")
    if authorization is None and (request.path == MESSAGES.path or request.path.startswith(b"/v1/autopilot/")):
        key = request.getHeader(b"x-api-key")
        authorization = None if key is None else b"Bearer " + key
    return Client(
        peer_of(request.getClientAddress()),
        authorization,
        tuple(request.requestHeaders.getRawHeaders(b"x-forwarded-for", ())),
        request.getHeader(b"x-session-id"),
        request.getHeader(b"x-session-affinity"),
        request.getHeader(EXPLAIN) == b"1",
        _joined(request, b"traceparent"),
        _joined(request, b"tracestate"),
    )


def _joined(request: GatewayRequest, name: bytes) -> bytes | None:
    values = request.requestHeaders.getRawHeaders(name)
    return None if values is None else b",".join(values)
