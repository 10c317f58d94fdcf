"""GET /v1/attestation/report: the keys clients seal their requests to, and what the machine says to vouch for them."""

import re
import secrets
from collections.abc import Callable
from typing import Any, Literal, Protocol

import attrs
import msgspec
from twisted.internet.defer import Deferred

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.server_keys import ALGOS, ServerKey, ServerKeys
from chutes_autopilot.errors import e2ee_error
from chutes_autopilot.upstream.dstack import AgentQuote, DstackError
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.headers import Header

NOT_STORED: tuple[Header, ...] = ((b"Cache-Control", b"no-store"),)

_NONCE = re.compile(rb"[0-9a-fA-F]{64}")

Authenticate = Callable[[GatewayRequest], bytes]
"""Admits a caller and says who it is (web.client_auth), or raises the ApiError to answer with."""


class Agent(Protocol):
    """Who makes quotes: upstream.dstack.DstackAgent."""

    def get_quote(self, report_data: bytes) -> Deferred[AgentQuote]: ...

    def info(self) -> Deferred[dict[str, Any]]: ...


@attrs.frozen
class _Vouched:
    """What the agent gave for one report: a quote for each key, and its description of the machine."""

    quotes: tuple[AgentQuote, ...]
    info: dict[str, Any]


@attrs.define(eq=False)
class AttestationRoute:
    """Answers with the active keys, and a quote for each of them where there is a TEE.

    Without one it says ``attested: false`` and claims nothing.

    :param keys: those in force; may raise an ApiError.
    :param agent: not asked where ``mode`` is ``off``.
    :param mode: E2EE_ATTESTATION: whether a report without quotes is one.
    :param transport: CHUTES_TRANSPORT.
    :param now: Unix time.
    """

    authenticate: Authenticate
    keys: Callable[[], ServerKeys]
    agent: Agent
    mode: Literal["auto", "required", "off"]
    transport: Literal["tls", "e2ee"]
    now: Callable[[], float]

    def report(self, request: GatewayRequest) -> Deferred[None]:
        """Fires when the report is written, fails with the ApiError to answer with."""
        return Deferred.fromCoroutine(self._report(request))

    async def _report(self, request: GatewayRequest) -> None:
        self.authenticate(request)
        algo = asked_algo(request)
        nonce = _asked_nonce(request)
        keys = self._chosen(algo, asked(request, b"signing_address"))
        vouched = await self._vouched(keys, nonce)
        reports = [self._of_key(key, nonce, vouched, number) for number, key in enumerate(keys)]
        body = msgspec.json.encode({**reports[0], "all_attestations": reports})
        request.answer(200, body, b"application/json", NOT_STORED)

    def _chosen(self, algo: Algo, address: bytes | None) -> list[ServerKey]:
        """The active keys, the one that is asked for first."""
        active = self.keys().active(algo, self.now())
        if address is not None:
            wanted = address.decode("latin-1").lower()
            first = next((key for key in active if key.address.lower() == wanted), None)
            if first is None:
                raise e2ee_error("not_found", "No active key has this signing address.", param="signing_address")
        elif active:
            first = active[0]
        else:
            raise e2ee_error("attestation_unavailable", "The time of every key of this algorithm is over.")
        return [first, *(key for key in active if key is not first)]

    async def _vouched(self, keys: list[ServerKey], nonce: bytes) -> _Vouched | None:
        """None where nobody vouches for the keys, and nobody need."""
        if self.mode == "off":
            return None
        try:
            info = await self.agent.info()
            return _Vouched(tuple([await self.agent.get_quote(report_data(key, nonce)) for key in keys]), info)
        except DstackError:
            if self.mode == "required":
                raise e2ee_error(
                    "attestation_unavailable", "The dstack guest agent gives no quote at the moment."
                ) from None
            return None

    def _of_key(self, key: ServerKey, nonce: bytes, vouched: _Vouched | None, number: int) -> dict[str, Any]:
        quote = None if vouched is None else vouched.quotes[number]
        return {
            "signing_address": key.address,
            "signing_algo": key.algo,
            "signing_public_key": key.wire_hex,
            "request_nonce": nonce.hex(),
            "intel_quote": quote and quote.quote,
            "quote": quote and quote.quote,
            "event_log": quote and quote.event_log,
            "info": vouched and vouched.info,
            "vm_config": quote and quote.vm_config,
            "nvidia_payload": None,  # this service has no GPU of its own
            "attested": vouched is not None,
            "not_after": key.not_after,
            "transport": self.transport,
        }


def report_data(key: ServerKey, nonce: bytes) -> bytes:
    """The 64 bytes that a quote binds: the key's address, zeros up to 32, the nonce."""
    return key.address_bytes.ljust(32, b"\0") + nonce


def asked_algo(request: GatewayRequest) -> Algo:
    """The query's ``signing_algo``, ecdsa where there is none; ApiError invalid_signing_algo."""
    value = asked(request, b"signing_algo")
    if value is None:
        return "ecdsa"
    for algo in ALGOS:
        if value == algo.encode():
            return algo
    raise e2ee_error("invalid_signing_algo", "signing_algo must be ecdsa or ed25519.", param="signing_algo")


def asked(request: GatewayRequest, name: bytes) -> bytes | None:
    """A parameter of the query, None where it is absent; of one that is repeated, a text that is no valid value."""
    values: list[bytes] | None = request.args.get(name)
    return None if values is None else b",".join(values)


def _asked_nonce(request: GatewayRequest) -> bytes:
    value = asked(request, b"nonce")
    if value is None:
        return secrets.token_bytes(32)
    if not _NONCE.fullmatch(value):
        raise e2ee_error("invalid_nonce", "nonce must be 64 hexadecimal digits.", param="nonce")
    return bytes.fromhex(value.decode())
