"""POST /v1/chat/completions over twisted.web: the reference behaviour of the relay's downstream side."""

import attrs
from twisted.internet.defer import Deferred

from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.relay.chat import CHAT_PATH, ChatCall, ChatRelay, all_headers, peer_of
from chutes_autopilot.web.downstream import RequestDownstream
from chutes_autopilot.web.site import GatewayRequest


@attrs.define(eq=False)
class ChatRoute:
    """Answers chat requests that twisted.web has read."""

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

        call = ChatCall(
            request.method,
            request.uri,
            all_headers(request.requestHeaders.getAllRawHeaders()),
            request.take_body(),
            request.request_id,
            peer_of(request.getClientAddress()),
        )
        exchange = self.relay.open(call, RequestDownstream(request), ended)
        done: Deferred[None] = Deferred(lambda _: exchange.client_gone())
        exchange.start()
        return done

    def body_refused(self, request: GatewayRequest, error: ApiError) -> None:
        """Count and log a request whose body was too large to be read."""
        if request.path == CHAT_PATH:
            self.relay.refused(request.request_id, request.received_bytes, error)
