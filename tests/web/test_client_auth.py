"""Who may use the Chutes route: the table of rules, and what counts as this machine's own programs."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from pytest_twisted import blockon
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from chutes_autopilot.errors import ApiError
from chutes_autopilot.web.client_auth import ANONYMOUS, AccessRules, authenticate, direct_peer

LOCAL = AccessRules(enabled=True, has_key=True, tokens=(), allow_anonymous=False)
TOKENS = attrs.evolve(LOCAL, tokens=(b"one", b"two"))
ANYBODY = attrs.evolve(LOCAL, allow_anonymous=True)
DISABLED = attrs.evolve(TOKENS, enabled=False, has_key=False)
KEYLESS = attrs.evolve(TOKENS, has_key=False)

HOST = (b"Host", b"localhost:8080")
BEARER_ONE = (b"Authorization", b"Bearer one")


def refused(
    rules: AccessRules, *headers: tuple[bytes, bytes], peer: str | None = "127.0.0.1", spends_key: bool = True
) -> tuple[int, str, str]:
    with pytest.raises(ApiError) as caught:
        authenticate(rules, headers, peer, spends_key=spends_key)
    assert caught.value.type == caught.value.code
    return caught.value.status, caught.value.code, caught.value.message


def admitted(
    rules: AccessRules, *headers: tuple[bytes, bytes], peer: str | None = "127.0.0.1", spends_key: bool = True
) -> bytes:
    return authenticate(rules, headers, peer, spends_key=spends_key)


@pytest.mark.parametrize("spends_key", [True, False])
def test_a_disabled_route_says_so_first(spends_key: bool) -> None:
    """To everybody, token or not."""
    expected = (503, "chutes_disabled", "Chutes route is disabled")
    assert refused(DISABLED, HOST, BEARER_ONE, spends_key=spends_key) == expected


def test_without_the_operators_key_only_what_needs_none_works() -> None:
    """Report and signature do not call the platform; and the missing key is told before the client's token counts."""
    expected = (503, "chutes_misconfigured", "CHUTES_API_KEY is not configured")
    assert refused(KEYLESS, HOST) == expected
    assert admitted(KEYLESS, HOST, BEARER_ONE, spends_key=False) == hashlib.sha256(b"one").digest()


@pytest.mark.parametrize("sent", [b"Bearer two", b"bearer two", b"BEARER  two "])
@pytest.mark.parametrize("peer", ["192.0.2.1", None])
def test_any_token_will_do(sent: bytes, peer: str | None) -> None:
    """From anywhere, through any proxy; the caller is known by its token's hash."""
    headers = (HOST, (b"X-Forwarded-For", b"192.0.2.7"), (b"authorization", sent))
    assert admitted(TOKENS, *headers, peer=peer) == hashlib.sha256(b"two").digest()


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"Authorization", b""),),
        ((b"Authorization", b"Bearer"),),
        ((b"Authorization", b"Bearer "),),
        ((b"Authorization", b"one"),),
        ((b"Authorization", b"Basic one"),),
        ((b"Authorization", b"Bearer three"),),
        ((b"Authorization", b"Bearer on"),),
        ((b"Authorization", b"Bearer one two"),),
        ((b"Authorization", b"Bearer one,two"),),
        ((b"X-API-Key", b"one"),),
        (BEARER_ONE, BEARER_ONE),
        (BEARER_ONE, (b"Authorization", b"Bearer three")),
    ],
)
@pytest.mark.parametrize("rules", [TOKENS, attrs.evolve(TOKENS, allow_anonymous=True)])
def test_no_other_token_will_do(rules: AccessRules, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Not even on this machine, nor where anonymous callers would be served if there were no tokens."""
    with pytest.raises(ApiError) as caught:
        authenticate(rules, (HOST, *headers), "127.0.0.1", spends_key=True)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert caught.value.headers == ((b"WWW-Authenticate", b"Bearer"),)
    assert "three" not in caught.value.message


@given(st.binary(max_size=20))
def test_only_the_tokens_themselves_are_tokens(sent: bytes) -> None:
    """Whatever bytes are sent."""
    try:
        caller = authenticate(TOKENS, [(b"Authorization", b"Bearer " + sent)], None, spends_key=True)
    except ApiError:
        assert sent.strip() not in TOKENS.tokens
    else:
        assert caller in {hashlib.sha256(token).digest() for token in TOKENS.tokens}


def test_where_anybody_may_everybody_is_the_same_caller() -> None:
    """A token that nobody asked for tells nothing."""
    for headers in ((), (BEARER_ONE,), ((b"Origin", b"http://x"),)):
        assert admitted(ANYBODY, *headers, peer="192.0.2.1") == ANONYMOUS
    assert admitted(ANYBODY, peer=None) == ANONYMOUS


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8080", "localhost:", "127.0.0.1", "127.1.2.3:8080", "[::1]", "[::1]:8080"]
)
@pytest.mark.parametrize("spends_key", [True, False])
def test_without_tokens_a_program_on_this_machine_is_served(peer: str, host: str, spends_key: bool) -> None:
    """So that a first try needs no more than the operator's key."""
    headers = ((b"Host", host.encode()), (b"User-Agent", b"curl"), (b"X-Request-Id", b"1"), BEARER_ONE)
    assert admitted(LOCAL, *headers, peer=peer, spends_key=spends_key) == ANONYMOUS


NOBODY_ELSE = (503, "chutes_misconfigured", "TOKEN is not configured")


@pytest.mark.parametrize(
    "peer", [None, "", "unix", "192.0.2.1", "10.0.0.1", "::", "fe80::1", "::ffff:192.0.2.1", "127.0.0.1.x"]
)
@pytest.mark.parametrize("spends_key", [True, False])
def test_without_tokens_no_other_peer_is_served(peer: str | None, spends_key: bool) -> None:
    """Also not the next machine, and nothing whose address is unknown."""
    assert refused(LOCAL, HOST, peer=peer, spends_key=spends_key) == NOBODY_ELSE


@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "example.org:8080",
        "localhost.example.org",
        "127.0.0.1.example.org",
        "a.localhost",
        "localhost:8080:1",
        "localhost@example.org",
        "192.0.2.1",
        "[::ffff:192.0.2.1]",
        "[::]",
        "[::1",
        "[127.0.0.1]",
        "::1",
        "127.1",
        "",
        " ",
        ":8080",
        "localhost:x",
        "localhost:\u00b2",
    ],
)
def test_a_page_that_calls_itself_this_machine_is_not_served(host: str) -> None:
    """DNS rebinding: the browser connects to loopback, and names the page's own host."""
    assert refused(LOCAL, (b"Host", host.encode("latin-1"))) == NOBODY_ELSE


@pytest.mark.parametrize(
    "header",
    [
        b"Origin",
        b"origin",
        b"Forwarded",
        b"Via",
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"x-forwarded-proto",
        b"X-FORWARDED-ANYTHING",
        b"X-Real-IP",
        b"True-Client-IP",
        b"CF-Connecting-IP",
    ],
)
def test_what_comes_through_a_browser_or_proxy_is_not_served(header: bytes) -> None:
    """A proxy on this machine connects from loopback, for whomever."""
    assert refused(LOCAL, HOST, (header, b"")) == NOBODY_ELSE


def test_one_host_must_be_named() -> None:
    """HTTP/1.0 needs none and is not served without tokens; two are one too many."""
    assert refused(LOCAL) == NOBODY_ELSE
    assert refused(LOCAL, HOST, HOST) == NOBODY_ELSE


def test_the_tokens_are_in_no_repr() -> None:
    """Rules may be printed."""
    assert "one" not in repr(TOKENS)


class End(Protocol):
    """One end of a connection: says what it has to say, looks at who is connected once it hears something."""

    def __init__(self, says: bytes = b"") -> None:
        self.says = says
        self.peer: str | None = "nothing was heard"
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.says)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.peer = direct_peer(self.transport)
        self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.gone.callback(None)


AUTHORITY = trustme.CA()


@pytest.fixture
def peer_seen() -> Iterator[Callable[..., Any]]:
    """Listens on an endpoint, connects with the client of another and says a line; gives the peer that was seen."""
    from twisted.internet import reactor

    ports = []

    async def seen(server: str, client: str, says: bytes, tls: bool) -> str | None:
        accepted, caller = End(), End(says)
        factory = Factory.forProtocol(lambda: accepted)
        factory.noisy = False
        port = await serverFromString(reactor, server).listen(factory)
        ports.append(port)
        endpoint = clientFromString(reactor, client.format(port=getattr(port.getHost(), "port", None)))
        if tls:
            trusted = trustRootFromCertificates([Certificate.loadPEM(AUTHORITY.cert_pem.bytes())])
            endpoint = wrapClientTLS(optionsForClientTLS("localhost", trustRoot=trusted), endpoint)
        await connectProtocol(endpoint, caller)
        await gatherResults([accepted.gone, caller.gone])
        return accepted.peer

    yield seen
    for port in ports:
        blockon(maybeDeferred(port.stopListening))


@pytest.mark.parametrize(
    ("server", "client", "says", "tls", "peer"),
    [
        ("tcp:0:interface=127.0.0.1", "tcp:127.0.0.1:{port}", b"x", False, "127.0.0.1"),
        ("ssl:0:privateKey={path}/pem:interface=127.0.0.1", "tcp:127.0.0.1:{port}", b"x", True, "127.0.0.1"),
        ("unix:{path}/s", "unix:{path}/s", b"x", False, None),
        (
            "haproxy:tcp:0:interface=127.0.0.1",
            "tcp:127.0.0.1:{port}",
            b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nx",
            False,
            None,
        ),
        ("haproxy:tcp:0:interface=127.0.0.1", "tcp:127.0.0.1:{port}", b"PROXY UNKNOWN ::1 ::1 1 2\r\nx", False, None),
    ],
    ids=["tcp", "ssl", "unix", "haproxy", "haproxy unknown"],
)
async def test_only_a_socket_of_its_own_says_where_a_request_comes_from(
    peer_seen: Callable[..., Any], tmp_path: Path, server: str, client: str, says: bytes, tls: bool, peer: str | None
) -> None:
    """A proxy's word for it is not taken, and a unix socket has no address."""
    AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    server, client = server.replace("{path}", str(tmp_path)), client.replace("{path}", str(tmp_path))
    assert await peer_seen(server, client, says, tls) == peer


def test_an_unknown_transport_says_nothing() -> None:
    """Nor does the lack of one."""
    assert direct_peer(object()) is None
