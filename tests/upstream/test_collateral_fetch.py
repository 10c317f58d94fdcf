import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pytest_twisted import blockon
from treq.client import HTTPClient
from twisted.internet.defer import execute, maybeDeferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from chutes_autopilot.e2ee.collateral import Platform
from chutes_autopilot.upstream.chute_e2ee.collateral import (
    INTEL_ROOT_CRL,
    INTEL_SERVICE,
    REFRESH_SECONDS,
    RETRY_SECONDS,
    CollateralSource,
)
from chutes_autopilot.upstream.fetch import FetchError
from tests.e2ee.quote_factory import DAY, FMSPC, NOW, machine

PLATFORM = Platform(FMSPC, "platform")
CRL_PATH = b"/sgx/certification/v4/pckcrl?ca=platform&encoding=der"
TCB_PATH = b"/tdx/certification/v4/tcb?fmspc=" + FMSPC.encode()
QE_PATH = b"/tdx/certification/v4/qe/identity?update=standard"
ROOT_PATH = b"/sgx/certification/v4/rootcacrl"


class Cache(Resource):
    """A PCCS: serves ``collateral`` in the form of Intel's API, or 503 while it is None."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.collateral: dict[str, str] | None = json.loads(machine().collateral())
        self.uris: list[bytes] = []

    def render(self, request: Request) -> bytes:
        self.uris.append(request.uri)
        if self.collateral is None:
            request.setResponseCode(503)
            return b""
        parts = self.collateral

        def chain(header: str, member: str) -> None:
            request.setHeader(header, quote(parts[member]))

        def signed(name: str, member: str) -> bytes:
            return f'{{"{name}":{parts[member]},"signature":"{parts[member + "_signature"]}"}}'.encode()

        if request.uri == CRL_PATH:
            chain("SGX-PCK-CRL-Issuer-Chain", "pck_crl_issuer_chain")
            return bytes.fromhex(parts["pck_crl"])
        if request.uri == TCB_PATH:
            chain("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain")
            return signed("tcbInfo", "tcb_info")
        if request.uri == QE_PATH:
            chain("SGX-Enclave-Identity-Issuer-Chain", "qe_identity_issuer_chain")
            return signed("enclaveIdentity", "qe_identity")
        assert request.uri == ROOT_PATH
        return parts["root_ca_crl"].encode()


def ends(selectable: Any) -> set[int]:
    """The ports of a connection."""
    return {selectable.getHost().port, selectable.getPeer().port} if isinstance(selectable, Connection) else set()


@pytest.fixture
def cache() -> Iterator[tuple[Cache, str]]:
    from twisted.internet import reactor

    resource = Cache()
    site = Site(resource, timeout=None)
    site.noisy = False
    port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
    number = port.getHost().port
    yield resource, f"http://127.0.0.1:{number}"
    blockon(maybeDeferred(port.stopListening))
    while any(number in ends(one) for one in reactor.getReaders() + reactor.getWriters()):  # type: ignore[attr-defined]
        blockon(deferLater(reactor, 0.001))  # until both sides have seen the end of every connection


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(NOW)
    return clock


Start = Callable[[], CollateralSource]


@pytest.fixture
def start(cache: tuple[Cache, str], clock: Clock, tmp_path: Path) -> Start:
    from twisted.internet import reactor

    def make() -> CollateralSource:
        url, root = cache[1] + "/sgx/certification/v4/", machine().root_spki_sha256
        client = HTTPClient(Agent(reactor))
        return CollateralSource(client, url, tmp_path / "kept", clock, clock.seconds, execute, root_spki_sha256=root)

    return make


async def reason(source: CollateralSource, platform: Platform = PLATFORM) -> str:
    with pytest.raises(FetchError) as caught:
        await source.collateral(platform)
    return caught.value.reason


async def test_four_answers_make_collateral(cache: tuple[Cache, str], start: Start) -> None:
    """Asked for by the platform, the signed texts as they came; a second time it is at hand."""
    source = start()
    collateral = await source.collateral(PLATFORM)
    assert json.loads(collateral.text) == cache[0].collateral
    assert cache[0].uris == [CRL_PATH, TCB_PATH, QE_PATH, ROOT_PATH]
    assert await source.collateral(PLATFORM) is collateral
    assert len(cache[0].uris) == 4


async def test_a_restart_needs_no_network(cache: tuple[Cache, str], start: Start, tmp_path: Path) -> None:
    """What is on the disk is taken; only its owner can read it, and no half of a file is left."""
    collateral = await start().collateral(PLATFORM)
    cache[0].collateral = None
    assert await start().collateral(PLATFORM) == collateral
    [file] = (tmp_path / "kept").iterdir()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(file.parent).st_mode) == 0o700


@pytest.mark.parametrize("content", [b"", b"{}", machine().collateral(tcb_info="{}").encode()])
async def test_what_the_disk_has_is_checked(start: Start, tmp_path: Path, content: bytes) -> None:
    """A damaged or forged file is fetched again and replaced."""
    await start().collateral(PLATFORM)
    [file] = (tmp_path / "kept").iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    await start().collateral(PLATFORM)
    assert file.read_bytes() == good


async def test_it_is_renewed_once_a_day(cache: tuple[Cache, str], start: Start, clock: Clock) -> None:
    """Also across a restart; if the cache is down then, what there is serves until it ends."""
    source = start()
    first = await source.collateral(PLATFORM)
    cache[0].collateral = json.loads(machine().collateral(tcb={"ends": NOW + 60 * DAY}))
    clock.advance(REFRESH_SECONDS - 1)
    assert await source.collateral(PLATFORM) is first
    assert (await start().collateral(PLATFORM)).ends == first.ends
    clock.advance(1)
    second = await source.collateral(PLATFORM)
    assert second != first
    asked = len(cache[0].uris)
    clock.advance(REFRESH_SECONDS)
    await start().collateral(PLATFORM)
    assert len(cache[0].uris) == asked + 4
    cache[0].collateral = None
    assert await source.collateral(PLATFORM) == second
    clock.advance(30 * DAY)
    assert await reason(source) == "status"


async def test_a_cache_that_is_down_is_left_alone_for_a_while(
    cache: tuple[Cache, str], start: Start, clock: Clock
) -> None:
    """One failure, then silence for five minutes, however many instances wait for it."""
    source = start()
    cache[0].collateral = None
    assert await reason(source) == "status"
    assert await reason(source) == "network"
    assert len(cache[0].uris) == 1
    clock.advance(RETRY_SECONDS)
    cache[0].collateral = json.loads(machine().collateral())
    assert await source.collateral(PLATFORM)


async def test_other_than_asked_for_is_not_taken(cache: tuple[Cache, str], start: Start, tmp_path: Path) -> None:
    """Collateral that is forged, or right but of another platform, is as none, and nothing is written."""
    cache[0].collateral = json.loads(machine().collateral(qe_identity_signature="00" * 64))
    assert await reason(start()) == "invalid"
    cache[0].collateral = json.loads(machine().collateral(tcb={"fmspc": "0123456789AB"}))
    assert await reason(start()) == "invalid"
    assert not (tmp_path / "kept").exists()


async def test_a_directory_that_cannot_be_written_costs_no_verdict(start: Start, tmp_path: Path) -> None:
    """What was fetched serves this process all the same."""
    (tmp_path / "kept").write_text("a file")
    assert await start().collateral(PLATFORM)


async def test_intels_own_service_has_the_roots_list_elsewhere(clock: Clock, tmp_path: Path) -> None:
    """The root's list is asked for where Intel publishes it, and nothing else changes."""
    urls: list[str] = []

    class Empty:
        code = 200
        headers = Headers()

        @property
        def original(self) -> "Empty":
            return self

        def deliverBody(self, reading: Protocol) -> None:
            reading.makeConnection(StringTransport())
            reading.dataReceived(b'{"tcbInfo":{},"enclaveIdentity":{},"signature":""}')
            reading.connectionLost(Failure(ResponseDone()))

    class Recording:
        async def get(self, url: str, **_: Any) -> Empty:
            urls.append(url)
            return Empty()

    source = CollateralSource(Recording(), INTEL_SERVICE, tmp_path, clock, clock.seconds, execute)  # type: ignore[arg-type]
    assert await reason(source) == "invalid"
    assert urls == [*(INTEL_SERVICE + path.decode() for path in (CRL_PATH, TCB_PATH, QE_PATH)), INTEL_ROOT_CRL]
