"""GET /v1/signature/{chat_id} and GET /v1/receipts/{chat_id}: what the service signs of an answer it has given.

Nothing is signed before somebody asks; what is kept of an answer is two hashes and, where there is one, its receipt.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import attrs
import msgspec
from twisted.internet.defer import Deferred

from chutes_autopilot.e2ee.receipt import sign_receipt
from chutes_autopilot.e2ee.server_keys import ServerKey, ServerKeys
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.web.attestation import NOT_STORED, Authenticate, asked_algo
from chutes_autopilot.web.site import GatewayRequest


@attrs.frozen
class SignedExchange:
    """What is kept of one complete answer.

    :param text: hex of SHA-256 of the request's bytes, a colon, hex of SHA-256 of the answer's bytes.
    :param key_id: names the generation of keys that the request was sealed to; of a plain request, the current one.
    :param receipt: what e2ee.receipt.build_receipt made of it, None where there is none.
    """

    text: str
    key_id: str
    receipt: Mapping[str, Any] | None = None


class SignedExchanges(Protocol):
    """Where they are kept for a while, by the caller (web.client_auth) and the answer's ``id``."""

    def get(self, key: tuple[bytes, str], /) -> SignedExchange | None: ...


@attrs.define(eq=False)
class SignatureRoute:
    """Answers those who got the answer in the first place, and nobody else.

    :param keys: those in force; may raise an ApiError.
    :param now: Unix time.
    :param elsewhere: finds those of other replicas; None where there are none.
    """

    authenticate: Authenticate
    keys: Callable[[], ServerKeys]
    exchanges: SignedExchanges
    now: Callable[[], float]
    elsewhere: Callable[[tuple[bytes, str]], Awaitable[SignedExchange | None]] | None = None

    def signature(self, request: GatewayRequest, chat_id: str) -> Deferred[None]:
        """The signature over the hashes of request and answer.

        The query's ``model`` is accepted, as existing clients send it, and means nothing.
        """
        return Deferred.fromCoroutine(self._signature(request, chat_id))

    def receipt(self, request: GatewayRequest, chat_id: str) -> Deferred[None]:
        """The receipt, and the signature over its canonical JSON."""
        return Deferred.fromCoroutine(self._receipt(request, chat_id))

    async def _signature(self, request: GatewayRequest, chat_id: str) -> None:
        exchange, key = await self._asked(request, chat_id)
        answer = {
            "text": exchange.text,
            "signature": key.sign(exchange.text),
            "signing_address": key.address,
            "signing_algo": key.algo,
        }
        request.answer(200, msgspec.json.encode(answer), b"application/json", NOT_STORED)

    async def _receipt(self, request: GatewayRequest, chat_id: str) -> None:
        exchange, key = await self._asked(request, chat_id)
        if exchange.receipt is None:
            raise _not_found()
        answer = sign_receipt(exchange.receipt, key)
        request.answer(200, msgspec.json.encode(answer), b"application/json", NOT_STORED)

    async def _asked(self, request: GatewayRequest, chat_id: str) -> tuple[SignedExchange, ServerKey]:
        caller = self.authenticate(request)
        algo = asked_algo(request)
        exchange = self.exchanges.get((caller, chat_id))
        if exchange is None and self.elsewhere is not None:
            exchange = await self.elsewhere((caller, chat_id))
        if exchange is None:
            raise _not_found()
        key = self.keys().by_id(algo, exchange.key_id, self.now())
        if key is None:
            raise _not_found()
        return exchange, key


def _not_found() -> ApiError:
    return e2ee_error("not_found", "Chat id not found or expired")
