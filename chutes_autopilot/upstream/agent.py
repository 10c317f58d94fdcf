"""treq on the pool's connections: one way to an upstream, for the control plane as for the traffic."""

import re
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urlsplit

from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, fail
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from chutes_autopilot.upstream.agent_exchange import AgentExchange, AgentRequest
from chutes_autopilot.upstream.pool import Backend, ConnectionPool
from chutes_autopilot.upstream.request_body import collect_body
from chutes_autopilot.wire.headers import header_lines
from chutes_autopilot.wire.http1 import request_head

_METHOD = re.compile(rb"[A-Z]+")
_TARGET = re.compile(r"[!-~]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_WRITTEN_BY_THE_AGENT = (b"host", b"content-length", b"transfer-encoding", b"connection")


def control_plane_client(pool: ConnectionPool) -> HTTPClient:
    """treq on this pool. It keeps no cookies; redirects it follows unless each call says otherwise."""
    return HTTPClient(PooledAgent(pool), IndexableCookieJar(DefaultCookiePolicy(allowed_domains=())))


@implementer(IAgent)
class PooledAgent:
    """Sends small requests over a pool's connections; `treq.client.HTTPClient` and twisted.web's agents run on it.

    Only what a control plane needs: no HEAD (its response ends where the parser cannot know), no upgrade, and
    bodies of MAX_BODY_BYTES at most, which are collected before a connection is wanted.

    A GET on a reused connection that breaks without having given a byte is sent once more, on a new one. Anything
    else always has a new connection, so that it is never sent twice.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._backend = lru_cache(maxsize=64)(Backend)  # the same one each time, which the pool finds sooner

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """The response, as soon as its head is there.

        Fails with SchemeNotSupported and ValueError for what cannot be sent, with the network's error where no
        connection comes about within the pool's deadline, and with ResponseNeverReceived. A body that is not whole
        ends with ResponseFailed; one that lasts until the connection closes, with PotentialDataLoss. Cancelling, and
        ``abortConnection`` of the body's transport, close the connection.
        """
        request = AgentRequest(method, uri, headers or Headers())
        try:
            secure, host, port, target = _parsed(uri)
            if not _METHOD.fullmatch(method) or method in (b"HEAD", b"CONNECT"):
                raise ValueError("a method that cannot be sent")
            fields = _field_lines(request.headers)
        except (SchemeNotSupported, ValueError):
            return fail()
        backend = self._backend(secure, host, port)

        def sent_as(body: bytes) -> Deferred[IResponse]:
            if bodyProducer is None and method == b"GET":
                head = b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target, backend.host_header, fields)
            else:
                head = request_head(method, target, backend.host_header, fields, len(body))
            return AgentExchange(self._pool, backend, request, head + body).start()

        if bodyProducer is None:
            return sent_as(b"")
        return collect_body(bodyProducer).addCallback(sent_as)


def _parsed(uri: bytes) -> tuple[bool, str, int, bytes]:
    """Whether over TLS, host, port and target. Raises SchemeNotSupported and ValueError."""
    parts = urlsplit(uri.decode("ascii"))
    if parts.scheme not in ("http", "https"):
        raise SchemeNotSupported("only http and https")
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    if not parts.hostname or not _TARGET.fullmatch(target) or not target.startswith("/"):
        raise ValueError("a URL that cannot be asked for")
    secure = parts.scheme == "https"
    return secure, parts.hostname, parts.port or (443 if secure else 80), target.encode()


def _field_lines(headers: Headers) -> bytes:
    fields = [
        (name, value)
        for name, values in headers.getAllRawHeaders()
        for value in values
        if name.lower() not in _WRITTEN_BY_THE_AGENT
    ]
    if not all(_VALUE.fullmatch(value) for _, value in fields):  # names have been looked at by Headers
        raise ValueError("a header that cannot be sent")
    return header_lines(fields)
