"""One chat request as it was read from a client, and what it says of its sender."""

import attrs

from chutes_autopilot.policy.client_address import TrustedProxies, client_address
from chutes_autopilot.policy.stickiness import bearer_token, client_key, session_value
from chutes_autopilot.unshown import Unshown


@attrs.define(eq=False)
class Client:
    """What a request says of its sender; used to recognise it, never to admit it.

    :param peer: the other end's address; no IP address for a unix socket.
    :param explain: whether it wants to be told why, in a header of the answer.
    :param traceparent: which span of whose trace the request belongs to, as it came, with its tracestate (W3C Trace
        Context).
    :param forwarded_for: the values of X-Forwarded-For in order.
    """

    peer: str
    authorization: bytes | None = None
    forwarded_for: tuple[bytes, ...] = ()
    session_id: bytes | None = None
    session_affinity: bytes | None = None
    explain: bool = False
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    _session: bytes | None = attrs.field(default=None, init=False)
    _key: bytes = attrs.field(default=b"", init=False)
    _credential: bytes = attrs.field(default=b"", init=False)

    def key(self, secret: bytes, trusted_proxies: TrustedProxies | None, prompt_cache_key: str) -> bytes:
        """The key by which it is remembered; the last one is kept, for connections that bring many requests."""
        if self._session == b"" and not prompt_cache_key and self.session_id is None and self.session_affinity is None:
            return self._key
        session = session_value(self.session_id, self.session_affinity, prompt_cache_key)
        if session != self._session:
            token = bearer_token(self.authorization)
            # the address counts only where there is no token, and reading it is not for nothing
            address = "" if token else client_address(self.peer, self.forwarded_for, trusted_proxies)
            self._key = client_key(secret, token=token, address=address, session=session)
            self._session = session
        return self._key

    def credential_key(self, secret: bytes, trusted_proxies: TrustedProxies | None) -> bytes:
        """The key of its credential alone, the same in each of its sessions."""
        if self._session == b"":
            return self._key
        if not self._credential:
            token = bearer_token(self.authorization)
            address = "" if token else client_address(self.peer, self.forwarded_for, trusted_proxies)
            self._credential = client_key(secret, token=token, address=address, session=b"")
        return self._credential


class ChatCall(Unshown, eq=False):
    """One chat request as it was read from a client.

    :param target: the request target in origin form, as received.
    :param fields: the header lines that go upstream (wire.headers.upstream_request_headers).
    :param continuable: whether its stream may be continued by another model: an encrypted one may not.
    """

    method: bytes
    target: bytes
    fields: bytes
    body: bytes
    request_id: str
    client: Client
    continuable: bool = True

    def drop(self) -> None:
        """Hold what was sent upstream no longer."""
        self.fields = self.body = b""


def peer_of(address: object) -> str:
    """The host of a Twisted address, or a word that is no IP address where it has none."""
    host: str | None = getattr(address, "host", None)
    return host or "unix"
