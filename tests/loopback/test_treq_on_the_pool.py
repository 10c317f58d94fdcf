"""treq over the pool's agent on real sockets: reuse, gzip, redirects and cookies; `test_fetch_json` has the rest."""

import gzip
from collections.abc import Iterator

import pytest
from pytest_twisted import blockon
from treq.client import HTTPClient
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from chutes_autopilot.upstream.agent import control_plane_client
from chutes_autopilot.upstream.pool import ConnectionPool, endpoints_for


class Upstream(Resource):
    """Answers by path, and keeps what was asked."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[object] = []
        self.cookies: list[bytes | None] = []
        self.content = b""

    def render(self, request: Request) -> bytes | int:
        self.peers.append(request.transport)
        self.cookies.append(request.getHeader(b"cookie"))
        self.content = request.content.read()
        match request.path:
            case b"/gzip":
                request.setHeader(b"Content-Encoding", b"gzip")
                return gzip.compress(b"unzipped")
            case b"/moved":
                request.redirect(b"/elsewhere")
                return b""
            case b"/cookie":
                request.addCookie(b"a", b"b")
                return b"cake"
            case b"/large":
                request.write(b"x" * 500_000)  # without a length: chunked
                request.finish()
                return NOT_DONE_YET
        request.setResponseCode(404)
        return b"nothing here"


class World:
    """treq, the pool it runs on, and an upstream on loopback."""

    def __init__(self) -> None:
        from twisted.internet import reactor

        self.upstream = Upstream()
        self.site = Site(self.upstream)
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.pool = ConnectionPool(reactor, endpoints_for(reactor, None), 5.0)  # type: ignore[arg-type]
        self.client: HTTPClient = control_plane_client(self.pool)

    def url(self, path: str) -> str:
        return f"http://localhost:{self.port.getHost().port}{path}"

    async def get(self, path: str) -> tuple[int, bytes]:
        response = await self.client.get(self.url(path), allow_redirects=False)
        return response.code, await response.content()


@pytest.fixture
def world() -> Iterator[World]:
    from twisted.internet import reactor

    world = World()
    yield world
    blockon(world.pool.close())
    blockon(maybeDeferred(world.port.stopListening))
    blockon(deferLater(reactor, 0.001))


async def test_one_connection_serves_one_request_after_the_other(world: World) -> None:
    """Whatever the answer, and however its body is framed or zipped; a POST brings one of its own."""
    assert await world.get("/gzip") == (200, b"unzipped")
    assert await world.get("/large") == (200, b"x" * 500_000)
    assert await world.get("/none") == (404, b"nothing here")
    assert len(set(world.upstream.peers)) == 1
    response = await world.client.post(world.url("/none"), json={"a": 1})
    assert await response.content() == b"nothing here"
    assert world.upstream.content == b'{"a":1}'
    assert len(set(world.upstream.peers)) == 2


async def test_a_redirect_is_an_answer(world: World) -> None:
    """Nobody goes where it leads."""
    assert (await world.get("/moved"))[0] == 302
    assert len(world.upstream.peers) == 1


async def test_no_cookie_is_kept(world: World) -> None:
    """Requests beside the traffic have no history."""
    assert await world.get("/cookie") == (200, b"cake")
    await world.get("/cookie")
    assert world.upstream.cookies == [None, None]
