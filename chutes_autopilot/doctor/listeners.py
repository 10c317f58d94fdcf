"""Whether the gateway's endpoints can be listened on, and who is there where they cannot."""

import errno
import re
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from chutes_autopilot.doctor.connections import Unjudged
from chutes_autopilot.doctor.findings import Finding, fail, ok, warn
from chutes_autopilot.listening import check_endpoint

_ANSWER_SECONDS = 3.0
_MAX_ANSWER = 16 * 1024

_ADVICE = {
    errno.EADDRINUSE: "end the program that listens there, or choose another port (LISTEN_ADDR or --endpoint)",
    errno.EACCES: "ports below 1024 need a right of their own (CAP_NET_BIND_SERVICE), a unix socket its directory",
    errno.EADDRNOTAVAIL: "this machine does not have that address: see LISTEN_ADDR",
}
_NOT_READY = {
    "draining": "it is stopping",
    "missing_allowlist": "see the findings on the catalog; it has never been fetched there",
    "allowlist_empty": "see the findings on the catalog",
    "stale_allowlist": "see the findings on the catalog; requests are still routed",
    "not_ready": "see the findings on utilization and ranking",
    "stale_snapshot": "see the findings on utilization; requests are still routed",
}


async def check_endpoint_free(reactor: Any, endpoint: str) -> Finding:
    """Listen for a moment as the gateway would, or ask who listens already."""
    if endpoint.startswith("systemd:"):
        return ok("listen", endpoint, "a socket that systemd hands over: only the start itself can tell")
    try:
        check_endpoint(reactor, endpoint)
    except ValueError as error:
        return fail("listen", endpoint, str(error), "the README lists what an endpoint may be")
    factory = Factory.forProtocol(_Closed)
    factory.noisy = False
    try:
        port: Any = await maybeDeferred(serverFromString(reactor, endpoint).listen, factory)
    except CannotListenError as error:
        return await _taken(reactor, endpoint, error)
    except Exception as error:  # noqa: BLE001 - every kind of endpoint fails in its own way
        return fail("listen", endpoint, f"cannot be listened on: {type(error).__name__}", "choose another endpoint")
    await maybeDeferred(port.stopListening)
    return ok("listen", endpoint, "free")


async def _taken(reactor: Any, endpoint: str, error: CannotListenError) -> Finding:
    number = getattr(error.socketError, "errno", None)
    reason = getattr(error.socketError, "strerror", None) or type(error.socketError).__name__
    if number not in (errno.EADDRINUSE, None):  # a unix socket's lock has no errno
        return fail("listen", endpoint, f"cannot be listened on: {reason}", _ADVICE.get(number, "see the reason"))
    answer = await _ask_readyz(reactor, endpoint, error)
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    code = re.search(rb'"code": ?"([a-z_]{1,40})"', answer)
    if found and found[1] == b"200" and (ready := re.search(rb"\r\n\r\nready(?:; ([ -~]{1,200}))?$", answer)):
        if ready[1] is None:
            return ok("listen", endpoint, "a gateway listens there, and is ready")
        message = f"a gateway listens there, and is ready, but: {ready[1].decode()}"
        return warn("listen", endpoint, message, "see its log")
    if found and found[1] == b"503" and code and code[1].decode() in _NOT_READY:
        name = code[1].decode()
        return warn("listen", endpoint, f"a gateway listens there, and is not ready: {name}", _NOT_READY[name])
    if found and b"x-request-id" in answer.lower():
        return warn("listen", endpoint, f"a gateway listens there; /readyz: {found[1].decode()}", "see its log")
    return fail("listen", endpoint, "another program listens there", _ADVICE[errno.EADDRINUSE])


async def _ask_readyz(reactor: Any, endpoint: str, error: CannotListenError) -> bytes:
    """The whole answer of GET /readyz at what could not be listened on; empty where none comes."""
    client: Any
    if isinstance(error.port, int):
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(error.interface or "", error.interface)  # noqa: S104
        client = (TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint)(reactor, host, error.port, _ANSWER_SECONDS)
    else:
        client = UNIXClientEndpoint(reactor, error.port, _ANSWER_SECONDS)
    proxied = endpoint.startswith("haproxy:")
    if re.match("(haproxy:)?(ssl|tls):", endpoint):
        client = wrapClientTLS(Unjudged("localhost", None), client)
    asking = _Asking(b"PROXY UNKNOWN\r\n" if proxied else b"")
    try:
        await connectProtocol(client, asking)
        return await asking.answer.addTimeout(_ANSWER_SECONDS, reactor)
    except TimeoutError:
        return b""
    except Exception:  # noqa: BLE001 - whoever does not answer is no gateway
        return b""


class _Closed(Protocol):
    """Whoever connects while the port is tried is let go."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class _Asking(Protocol):
    def __init__(self, preface: bytes) -> None:
        self._preface = preface
        self._received = b""
        self.answer: Deferred[bytes] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        transport: Any = self.transport
        request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        transport.write(self._preface + request)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _MAX_ANSWER:
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.answer.called:
            self.answer.callback(self._received)

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()
