import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_twisted import blockon
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, execute, maybeDeferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.tcp import Connection
from twisted.web.client import Agent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from chutes_autopilot.e2ee.evidence import InstanceEvidence
from chutes_autopilot.upstream.chute_e2ee.evidence import CALLS_PER_MINUTE, MAX_EVIDENCE_BYTES, EvidenceSource
from chutes_autopilot.upstream.fetch import FetchError

NONCE = "0f" * 32
QUOTE = b64encode(b"quote").decode()


class Api(Resource):
    """Answers every request with what ``answer`` gives: status and body, or None for silence."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.answer: tuple[int, bytes] | None = (200, json.dumps({"evidence": []}).encode())
        self.uris: list[bytes] = []
        self.authorizations: list[str | None] = []
        self.asked: Deferred[None] = Deferred()

    def render(self, request: Request) -> Any:
        self.uris.append(request.uri)
        self.authorizations.append(request.getHeader("authorization"))
        asked, self.asked = self.asked, Deferred()
        asked.callback(None)
        if self.answer is None:
            return NOT_DONE_YET
        request.setResponseCode(self.answer[0])
        return self.answer[1]


def ends(selectable: Any) -> set[int]:
    """The ports of a connection."""
    return {selectable.getHost().port, selectable.getPeer().port} if isinstance(selectable, Connection) else set()


@pytest.fixture
def api() -> Iterator[tuple[Api, str]]:
    from twisted.internet import reactor

    resource = Api()
    site = Site(resource, timeout=None)
    site.noisy = False
    port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
    number = port.getHost().port
    yield resource, f"http://127.0.0.1:{number}"
    blockon(maybeDeferred(port.stopListening))
    while any(number in ends(one) for one in reactor.getReaders() + reactor.getWriters()):  # type: ignore[attr-defined]
        blockon(deferLater(reactor, 0.001))  # until both sides have seen the end of every connection


Start = Callable[..., EvidenceSource]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1_780_000_000.0 // 60 * 60)
    return clock


@pytest.fixture
def source(api: tuple[Api, str], clock: Clock) -> Start:
    from twisted.internet import reactor

    def start(**changes: Any) -> EvidenceSource:
        client = HTTPClient(Agent(reactor))
        return EvidenceSource(client, api[1] + "/", "operator-key", clock, execute, lambda: 0.5, **changes)

    return start


async def failure(asking: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        await asking
    assert "operator-key" not in str(caught.value)
    return caught.value


async def test_evidence_is_asked_for_by_chute_and_nonce(api: tuple[Api, str], source: Start) -> None:
    """With the operator's key; a chute's id cannot lead anywhere else; the GPU's part is dropped."""
    item = {"instance_id": "i-1", "quote": QUOTE, "certificate": "AAAA", "gpu_evidence": [{"evidence": "x" * 9999}]}
    api[0].answer = (200, json.dumps({"evidence": [item], "failed_instance_ids": ["i-2"]}).encode())
    answer = await source().evidence("../a b/c?d", NONCE)
    assert answer == {"i-1": InstanceEvidence("i-1", QUOTE, "AAAA")}
    assert api[0].uris == [b"/chutes/..%2Fa%20b%2Fc%3Fd/evidence?nonce=" + NONCE.encode()]
    assert api[0].authorizations == ["Bearer operator-key"]


async def test_measurements_come_as_they_are(api: tuple[Api, str], source: Start) -> None:
    """Unparsed, from their own path, with the key."""
    api[0].answer = (200, b"[1]")
    assert await source().measurements() == b"[1]"
    assert (api[0].uris, api[0].authorizations) == ([b"/servers/tee/measurements"], ["Bearer operator-key"])


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 502])
async def test_every_other_status_is_no_evidence(api: tuple[Api, str], source: Start, status: int) -> None:
    """Neither its text nor the key is repeated."""
    api[0].answer = (status, b'{"detail":"operator-key"}')
    assert (await failure(source().evidence("c", NONCE))).reason == "status"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"evidence":null}'])
async def test_an_answer_without_evidence_is_invalid(api: tuple[Api, str], source: Start, body: bytes) -> None:
    """Whatever it is."""
    api[0].answer = (200, body)
    assert (await failure(source().evidence("c", NONCE))).reason == "invalid"


async def test_an_answer_over_the_bound_is_cut(api: tuple[Api, str], source: Start) -> None:
    """One byte over 32 MiB is too large; nothing of it is parsed."""
    assert MAX_EVIDENCE_BYTES == 32 * 1024 * 1024
    api[0].answer = (200, b'{"evidence":[]}'.ljust(MAX_EVIDENCE_BYTES + 1))
    assert (await failure(source().evidence("c", NONCE))).reason == "too_large"


async def test_an_answer_that_never_comes_is_a_timeout(api: tuple[Api, str], source: Start, clock: Clock) -> None:
    """After the time given for a whole answer."""
    api[0].answer = None
    asked = api[0].asked
    asking = Deferred.fromCoroutine(source(timeout=200.0).evidence("c", NONCE))
    await asked
    clock.advance(199.0)
    assert not asking.called
    clock.advance(2.0)
    assert (await failure(asking)).reason == "timeout"


def test_the_limit_is_the_platforms() -> None:
    """60 calls per clock minute."""
    assert CALLS_PER_MINUTE == 60


async def test_calls_wait_for_the_next_minute(api: tuple[Api, str], source: Start, clock: Clock) -> None:
    """Evidence and measurements share one budget; what is over it waits its turn and is not refused."""
    asking = source(calls_per_minute=2)
    clock.advance(20.0)
    await asking.evidence("a", NONCE)
    await asking.measurements()
    third, fourth, fifth = (Deferred.fromCoroutine(asking.evidence(name, NONCE)) for name in "cde")
    clock.advance(39.0)
    assert (len(api[0].uris), third.called) == (2, False)
    clock.advance(1.0)
    await third
    await fourth
    assert (len(api[0].uris), fifth.called) == (4, False)
    clock.advance(60.0)
    await fifth
    assert api[0].uris[-1].startswith(b"/chutes/e/")


async def test_a_429_ends_the_minute(api: tuple[Api, str], source: Start, clock: Clock) -> None:
    """Others share the limit, so nothing more is asked before the next minute."""
    asking = source()
    api[0].answer = (429, b"")
    await failure(asking.evidence("c", NONCE))
    api[0].answer = (200, b'{"evidence":[]}')
    later = Deferred.fromCoroutine(asking.evidence("c", NONCE))
    clock.advance(60.5)
    await source().evidence("unlimited", NONCE)  # whatever was sent before it has arrived before it
    assert (len(api[0].uris), later.called) == (2, False)
    clock.advance(1.0)
    assert await later == {}
