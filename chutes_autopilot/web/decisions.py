"""Why a request went where it went: to its client, and the last ones to the operator."""

import hmac
import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import attrs

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.stickiness import bearer_token
from chutes_autopilot.relay.call import ChatCall
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.web.chat import client_of
from chutes_autopilot.web.site import GatewayRequest

SHOWN = 100
"""How many requests the operator is shown."""


@attrs.frozen
class DecisionRoutes:
    """Answers from memory, or from what other replicas told; no upstream is called.

    :param admin_token: by which the operator is known; None: there is no list here.
    :param elsewhere: asks the other workers for a request, by its id and its owner; JSON or nothing.
    """

    relay: ChatRelay
    admin_token: bytes | None = attrs.field(default=None, repr=False)
    elsewhere: Callable[[str, bytes], Awaitable[bytes | None]] | None = None

    async def one(self, request: GatewayRequest, request_id: str) -> None:
        """One request of the client that asks; ApiError not_found for any other, as if it did not exist."""
        client = client_of(request)
        found = self.relay.find(request_id, client)
        if found is None and self.elsewhere is not None:
            other = await self.elsewhere(request_id, self.relay.owner(client))
            if other is not None:
                send_json(request, other)
                return
        told = await self.relay.find_elsewhere(request_id, client) if found is None else found.decision().as_json()
        if told is None:
            raise ApiError("not_found", "There is no such request of yours, or it was too long ago.")
        _send(request, told)

    def recent(self, request: GatewayRequest) -> None:
        """The last requests and how each model fares, for the operator."""
        check_operator(request, self.admin_token)
        _send(request, self.relay.recent(SHOWN))

    def plan(self, request: GatewayRequest) -> None:
        """What a chat request would be tried on now; the body is that of the request."""
        call = ChatCall(b"POST", request.uri, b"", request.take_body(), request.request_id, client_of(request))
        _send(request, self.relay.explain(call))


def check_operator(request: GatewayRequest, admin_token: bytes | None) -> None:
    """Raise the ApiError for whoever does not show the operator's token."""
    if admin_token is None:
        raise ApiError("not_found", "There is nothing here.")
    sent = request.requestHeaders.getRawHeaders(b"Authorization") or []
    # hashes are compared: neither the time it takes nor a length says how near a guess was
    given = sha256(bearer_token(sent[0])).digest() if len(sent) == 1 else b""
    if not hmac.compare_digest(given, sha256(admin_token).digest()):
        raise ApiError(
            "invalid_api_key",
            "Send Authorization: Bearer with the ADMIN_TOKEN of this service.",
            headers=((b"WWW-Authenticate", b"Bearer"),),
        )


def send_json(request: GatewayRequest, answer: bytes) -> None:
    """Answer with JSON that nobody may keep."""
    request.responseHeaders.addRawHeader(b"Cache-Control", b"no-store")
    request.answer(200, answer, b"application/json")


def _send(request: GatewayRequest, answer: dict[str, Any]) -> None:
    send_json(request, json.dumps(answer).encode())
