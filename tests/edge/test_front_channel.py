"""The front channel does what the reference path does: the same requests over both, compared to the byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory_service import ANSWERS, World

from chutes_autopilot.web.channel import AHEAD_BYTES
from chutes_autopilot.web.timed import ClientLimits
from chutes_autopilot.wire.ordinary import read_ordinary_head

BODIES = st.sampled_from(
    [
        b'{"model":"chutesai/AutoPilot","stream":true}',
        b'{"model":"b/B"}',
        b'{"model":"b/B, a/A","prompt_cache_key":"k"}',
        b'{"model":"nobody/Knows"}',
        b'{"model":',
        b"[]",
        b"",
        b'{"model":"a/A","x":"' + b"y" * 2500 + b'"}',
    ]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            b"Authorization: Bearer t",
            b"authorization:Bearer t",
            b"Content-Type: application/json",
            b"X-Request-Id: my-id",
            b"X-Request-Id: not acceptable",
            b"X-Session-Id: s",
            b"X-Forwarded-For: 1.2.3.4",
            b"Accept-Encoding: gzip",
            b"Connection: keep-alive",
            b"Connection: close",
            b"Connection: X-Hop",
            b"X-Hop: 1",
            b"TE: trailers",
            b"Expect: 100-continue",
            b"X-Chutes-Trace: true",
            b"X-Chutes-Autopilot-Selected: spoof",
            b"X-Empty:",
            b"X-Tabs:\t a \t",
            "X-Latin: é".encode("latin-1"),
            b"Content-Length: 3",
            b"Transfer-Encoding: chunked",
            b"Bad Name: x",
            b" folded",
            b"NoColon",
            b"X-Nul: \x00",
        ]
    ),
    max_size=5,
    unique=True,
)
TARGETS = st.sampled_from(
    [b"/v1/chat/completions"] * 4 + [b"/v1/chat/completions?a=1&b", b"/v1/chat/completions/", b"/nope"]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, ordinary or odd."""
    body = draw(BODIES)
    lines = [b"POST " + draw(TARGETS) + b" " + draw(VERSIONS), b"Host: x", *draw(HEADERS)]
    if draw(st.integers(0, 9)):
        lines.insert(draw(st.integers(1, len(lines))), b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@settings(max_examples=120, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), st.sampled_from(ANSWERS), st.data())
def test_both_paths_do_the_same(sent: list[bytes], answer: bytes, data: st.DataObject) -> None:
    """For generated requests, pipelined and cut anywhere: the same answers, the same requests upstream."""
    raw = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=3)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    worlds = [World(answer, front) for front in (True, False)]
    for world in worlds:
        world.send(pieces)
    assert worlds[0].seen() == worlds[1].seen()
    assert worlds[0].metrics.active == worlds[1].metrics.active == 0


ORDINARY = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"model":"a/A"}'


def test_the_ordinary_request_is_taken_from_the_bytes() -> None:
    """It never becomes a twisted.web request; one with an odd header does."""
    for request, taken in ((ORDINARY, True), (ORDINARY.replace(b"Host", b"TE: trailers\r\nHost"), False)):
        world = World(ANSWERS[0], front=True)
        world.upstream.answer = b""
        world.send([request])
        assert bool(world.channel.requests) is not taken


both_readers = pytest.mark.parametrize("front", [True, False], ids=["front", "reference"])


@both_readers
@pytest.mark.parametrize("cut", [10, len(ORDINARY) - 5])
def test_bytes_keep_their_order_between_two_answers(front: bool, cut: int) -> None:
    """What comes in the turn of the reactor in which an answer ends stands behind what was sent ahead of it."""
    world = World(ANSWERS[0], front)
    ahead = ORDINARY + ORDINARY
    world.send([])
    world.channel.dataReceived(ORDINARY + ahead[:cut])
    asked = world.upstream.respond()
    world.channel.dataReceived(ahead[cut:])
    world.settle()
    assert (asked + world.asked).count(b"POST /v1/chat/completions ") == 3
    assert world.client.value().count(b"HTTP/1.1 200 OK") == 3


@both_readers
def test_a_client_that_does_not_read_is_not_asked_for(front: bool) -> None:
    """While the transport has no room, requests sent ahead wait; when it has, they are answered in their order."""
    world = World(ANSWERS[0], front)
    world.send([])
    world.channel.dataReceived(ORDINARY * 4)
    world.channel.pauseProducing()
    world.settle()
    assert world.asked.count(b"POST ") == 1
    world.clock.advance(74)
    world.channel.dataReceived(ORDINARY[:10])
    world.channel.resumeProducing()
    world.channel.pauseProducing()  # the next answer is as large: it has its time anew
    world.settle()
    world.clock.advance(74)
    world.channel.resumeProducing()
    world.send([ORDINARY[10:]])
    assert world.client.value().count(b"HTTP/1.1 200 OK") == 5


@both_readers
def test_a_client_that_never_reads_is_closed(front: bool) -> None:
    """CLIENT_IDLE_TIMEOUT_MS after the answer for which there was no room, whatever it sent ahead."""
    world = World(ANSWERS[0], front)
    world.send([ORDINARY])
    world.clock.advance(70)
    world.channel.dataReceived(ORDINARY * 2)
    world.channel.pauseProducing()
    world.settle()
    world.clock.advance(74)
    assert world.client.connected
    world.clock.advance(1)
    assert not world.client.connected
    assert world.metrics.active == 0


@both_readers
def test_a_client_that_does_not_read_is_not_read_from(front: bool) -> None:
    """One request after the other, without reading an answer, does not pile up answers either."""
    world = World(ANSWERS[0], front)
    world.send([])
    world.channel.dataReceived(ORDINARY)
    world.channel.pauseProducing()
    assert world.client.producerState == "producing"  # only so it is noticed when it leaves
    world.settle()
    assert world.client.producerState == "paused"
    world.channel.resumeProducing()
    assert world.client.producerState == "producing"


@pytest.mark.parametrize("front", [True, False])
def test_a_request_that_came_while_reading_was_paused_does_not_keep_it_paused(front: bool) -> None:
    """It was read in the same turn: the next one is read as well when the client has taken all answers."""
    world = World(ANSWERS[0], front)
    world.send([ORDINARY])
    world.channel.pauseProducing()
    world.channel.dataReceived(ORDINARY)
    world.channel.resumeProducing()
    world.upstream.respond()
    world.clock.advance(0)
    assert world.client.producerState == "producing"


@both_readers
def test_a_connection_with_requests_ahead_is_in_use_between_two_answers(front: bool) -> None:
    """Neither a stop that closes what is idle, nor a client that says it sends no more, costs an answer."""
    for end in ("close_if_idle", "readConnectionLost"):
        world = World(ANSWERS[0], front)
        world.send([])
        world.channel.dataReceived(ORDINARY * 2)
        world.upstream.respond()
        getattr(world.channel, end)()
        world.settle()
        assert world.client.value().count(b"HTTP/1.1 200 OK") == 2


@both_readers
@pytest.mark.parametrize(("ahead", "answers"), [(ORDINARY, 2), (b"\r\n", 1)], ids=["request", "line end"])
def test_a_stop_during_an_answer_leaves_no_request_ahead_of_it(front: bool, ahead: bytes, answers: int) -> None:
    """The answer had begun without a word of it being the last; the one to what is ahead is."""
    world = World(ANSWERS[0], front)
    world.send([])
    world.channel.dataReceived(ORDINARY + ahead)
    world.channel.site.connections.close_idle()
    world.settle()
    assert world.client.value().count(b"HTTP/1.1 200 OK") == answers
    assert not world.client.connected


@both_readers
def test_nothing_is_read_behind_the_last_answer(front: bool) -> None:
    """Where it said so, also not for a client that closed its sending side meanwhile."""
    world = World(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1", front)
    world.send([])
    world.channel.dataReceived(ORDINARY * 2)
    world.channel.site.connections.draining = True
    world.settle()
    world.channel.readConnectionLost()
    world.upstream.transports[0].protocol.dataReceived(b"2")
    world.settle()
    assert b"\r\nConnection: close\r\n" in world.client.value()
    assert world.asked.count(b"POST ") == 1
    assert not world.client.connected


@both_readers
def test_a_half_closed_client_may_take_its_time_with_the_last_answer(front: bool) -> None:
    """Once it is written, nobody looks whether it goes on."""
    world = World(ANSWERS[0], front)
    aborted: list[bool] = []
    world.client.loseConnection = lambda *_: None  # as a socket whose buffer is not empty yet
    world.client.abortConnection = lambda: aborted.append(True)
    world.send([])
    world.channel.dataReceived(ORDINARY)
    world.channel.readConnectionLost()
    world.settle()
    assert world.client.value().endswith(b"{}")
    world.clock.advance(74)
    assert not aborted
    world.clock.advance(1)
    assert aborted


@pytest.mark.parametrize(
    "change",
    [
        (b"POST", b"post"),
        (b" HTTP/1.1", b"  HTTP/1.1"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"completions", b"completions/"),
        (b"Host: x\r\n", b""),
        (b"Host: x", b"Host:"),
        (b"Host: x", b"Host: u@x"),
        (b"Host: x", b"Host: x\r\nHost: y"),
        (b"Content-Length: 15", b"Content-Length: +15"),
        (b"Content-Length: 15", b"Content-Length: 15\r\ncontent-length: 15"),
        (b"Content-Length: 15", b"Transfer-Encoding: chunked"),
        (b"Host: x", b"Host: x\r\nConnection: close"),
        (b"Host: x", b"Host: x\r\nUpgrade: h2c"),
        (b"Host: x", b"Host : x"),
        (b"Host: x\r\n", b"Host: x\n"),
        (b"Host: x", b"Host: x\r\n folded"),
        (b"Host: x", b"Host: \x01"),
        (b"Host: x", b"Host: x\r\nX-Chutes-Autopilot-Attempts: 9"),
        (b"Host: x", b"Host: x\r\nX: " + b"y" * 9000),
    ],
)
def test_whatever_is_not_exactly_ordinary_is_left_to_the_reference_path(change: tuple[bytes, bytes]) -> None:
    """Method, version, target, repeated, folded or framing headers: nothing odd is judged here."""
    assert read_ordinary_head(ORDINARY) is not None
    assert read_ordinary_head(ORDINARY.replace(*change, 1)) is None


@both_readers
def test_of_a_client_that_sends_much_ahead_no_more_is_read(front: bool) -> None:
    """Until its turn comes: what waits for the answer under way is bounded, and all of it is answered."""
    world = World(ANSWERS[0], front)
    world.send([])
    body = b'{"model":"a/A","x":"' + b"y" * 1900 + b'"}'
    large = ORDINARY[:-15].replace(b"15", b"%d" % len(body)) + body
    count = AHEAD_BYTES // len(large)
    world.channel.dataReceived(large * (count + 1))
    assert world.client.producerState == "producing"  # so that its leaving is noticed
    world.channel.dataReceived(large)
    assert world.client.producerState == "paused"
    for _ in range(count):
        world.settle()
    assert world.client.producerState == "producing"
    assert world.asked.count(b"POST ") == world.client.value().count(b"HTTP/1.1 200 OK") == count + 2


def test_a_body_in_pieces_has_its_time() -> None:
    """CLIENT_BODY_TIMEOUT_MS holds for requests the channel reads itself: a JSON 408."""
    world = World(ANSWERS[0], front=True)
    world.send([ORDINARY[:-5]])
    world.clock.advance(59.0)
    assert world.client.value() == b""
    world.clock.advance(1.5)
    assert world.client.value().startswith(b"HTTP/1.1 408 ")
    assert b'requests_total{status="408"} 1.0' in world.metrics.exposition()


@both_readers
def test_other_times_hold_from_the_next_wait_on(front: bool) -> None:
    """What a changed CLIENT_IDLE_TIMEOUT_MS replaces ends nothing that comes later."""
    world = World(ANSWERS[0], front)
    world.send([ORDINARY] * 2)
    world.clock.advance(10)
    world.channel.site.limits = ClientLimits(2000, 30, 60, 300)
    world.send([ORDINARY])
    world.clock.advance(60)
    world.client.clear()
    world.send([ORDINARY[:-5]])
    world.clock.advance(59)
    world.send([ORDINARY[-5:]])
    assert world.client.value().startswith(b"HTTP/1.1 200 ")
    world.clock.advance(299)
    assert world.client.connected
    world.clock.advance(1)
    assert not world.client.connected


def test_a_stream_that_came_in_one_read_is_over() -> None:
    """No deadline of its attempt stays behind: the connection answers on, long after the first byte was due."""
    world = World(ANSWERS[-1], front=True)
    request = b'POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 15\r\n\r\n{"model":"a/A"}'
    for asked in range(1, 5):
        world.send([request])
        assert world.client.value().count(b"0\r\n\r\n") == asked
        world.clock.advance(60)
        assert world.client.connected
