"""What is fuzzed: one function for each reader of bytes that strangers send.

Each takes any bytes and checks what must hold for all of them. It returns where that holds; whatever it raises is a
finding. Where a target needs more than one thing from its bytes, such as where to cut them, the first ones decide.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from in_memory_service import ANSWERS, World

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.request_needs import read_need
from chutes_autopilot.web.request_head import read_header_lines, read_request_line
from chutes_autopilot.wire import body as chat_body
from chutes_autopilot.wire.body import read_chat_body
from chutes_autopilot.wire.headers import downstream_response_headers, header_lines, upstream_request_headers
from chutes_autopilot.wire.http1 import (
    Body,
    End,
    Event,
    Invalid,
    ResponseHead,
    ResponseParser,
    shape_of,
    whole_response,
)
from chutes_autopilot.wire.ordinary import READ_HEADERS, read_ordinary_head
from chutes_autopilot.wire.sse import WINDOW_BYTES, StreamGuard


def pieces_of(data: bytes, first: int) -> list[bytes]:
    """The same bytes in pieces: single bytes (0), whole (255), or of ``first`` bytes and then of changing sizes."""
    if first == 255:
        return [data] if data else []
    pieces, at, size = [], 0, max(1, first)
    while at < len(data):
        pieces.append(data[at : at + size])
        at += size
        size = size * 7 % 61 + 1 if first else 1
    return pieces


def ordinary_head(data: bytes) -> None:
    """Whatever the front channel takes, the reference reader takes too: same target, headers and length."""
    head = read_ordinary_head(data)
    if head is None:
        return
    framing = head.framing(data)
    assert framing is not None
    length, end = framing
    first, *lines = data[:end].removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = read_request_line(first)
    read = read_header_lines(lines, line.version)
    assert (line.method, line.target, line.version) == (b"POST", head.target, b"HTTP/1.1")
    told = {name.lower(): value for name, value in read.headers}
    assert {name: told[name] for name in READ_HEADERS if name in told} == head.index
    assert header_lines(upstream_request_headers(read.headers, "")[:-1]) == head.upstream_fields
    assert (read.length, read.persistent, read.wants_continue) == (length, True, False)
    assert read_ordinary_head(data[:end]) == head, "what follows the head changes it"


def response_parser(data: bytes) -> None:
    """Any bytes are one response or invalid, the same wherever the network cuts them."""
    whole = _events(pieces_of(data[1:], 255))
    assert _events(pieces_of(data[1:], data[0] if data else 0)) == whole
    assert [type(event) for event in whole] in (
        [Invalid],
        [ResponseHead, Invalid],
        [ResponseHead, Body, Invalid],
        [ResponseHead, End],
        [ResponseHead, Body, End],
    )
    for head in whole[:1]:
        if isinstance(head, ResponseHead):
            told = b"".join([head.reason, *(part for header in head.headers for part in header)])
            assert not set(told) & set(b"\r\n\0"), "a head that another reader could take for two"


def _events(pieces: list[bytes]) -> list[Event]:
    """All events until the response or its connection ends, adjacent bodies joined.

    Bytes behind the end may or may not come with it, and words for a fault may differ: both are left out.
    """
    parser = ResponseParser()
    events: list[Event] = []
    for piece in pieces:
        events += parser.receive(piece)
        if events and isinstance(events[-1], End | Invalid):
            break
    events += parser.closed()
    joined: list[Event] = []
    for event in events:
        match event, joined:
            case Body(data), [*_, Body(before)]:
                joined[-1] = Body(before + data)
            case End(), _:
                joined.append(End(reusable=False))
            case Invalid(), _:
                joined.append(Invalid(""))
            case _:
                joined.append(event)
    return joined


def whole_answer(data: bytes) -> None:
    """What is taken in one go is what the parser finds, and a shape made from one answer reads no other one wrongly.

    The first byte says where the bytes are cut into two answers.
    """
    one, other = data[1 : 1 + data[0]] if data else b"", data[1 + data[0] :] if data else b""
    first = whole_response(one)
    for answer in (one, other):
        found = whole_response(answer)
        if found is None:
            continue
        head, body, end = _events([answer])
        assert (head, body, end) == (found[0], Body(found[1]), End(reusable=False))
        assert isinstance(head, ResponseHead)
        assert _values(found[0], False) == _values(head, False)
    shape = None if first is None else shape_of(first[0])
    for answer in (one, other):
        shaped, found = None if shape is None else shape.whole(answer), whole_response(answer)
        if shaped is not None:
            assert found is not None
            assert (shaped, shaped[0].block) == (found, found[0].block)
            passing = ResponseHead(200, b"", None, shaped[0].passing).headers
            assert passing == tuple(downstream_response_headers(found[0].headers))
            assert _values(shaped[0], True) == _values(found[0], True)


def _values(head: ResponseHead, of_shape: bool) -> dict[bytes, bytes]:
    """What a gateway reads of a head, as far as it is to be the same however the head was found."""
    unlike = {b"date", b"x-request-id"} if of_shape else set()
    read = {b"content-length", b"content-type", b"content-encoding", b"transfer-encoding", b"connection", *unlike}
    return {name: value.strip().lower() for name, value in head.index.items() if name in read - unlike}


def stream_guard(data: bytes) -> None:
    """The verdict does not depend on the cuts, as long as the stream is kept whole; a long one only has to have one."""
    verdicts = set()
    for first in (255, data[0] if data else 0):
        guard = StreamGuard()
        for piece in pieces_of(data[1:], first):
            guard.feed(piece)
        verdicts |= {guard.verdict(), guard.verdict()}
    assert len(verdicts) == 1 or len(data) > 2 * WINDOW_BYTES


def model_rewrite(data: bytes) -> None:
    """Whatever is taken is strict JSON; another model changes the model alone; both ways of finding it agree."""
    try:
        body = read_chat_body(data)
    except ApiError as error:
        if error.code != "invalid_body" and (error.code != "invalid_json" or _is_strict_json(data)):
            raise AssertionError("strict JSON is refused") from error
        return
    members = _members(data)
    read = dict(members)
    assert sum(name == "model" for name, _ in members) <= 1
    assert body.stream is (read.get("stream") is True)
    cache_key = read.get("prompt_cache_key")
    assert body.prompt_cache_key == (cache_key if type(cache_key) is str else "")
    walked = chat_body._walked_body(data, chat_body._validated(data)[0])
    assert read_need(walked.members, len(data)) == read_need(body.members, len(data), body.flat)
    walked.members, walked.flat = body.members, body.flat
    assert walked == body, "the walk finds something else"
    if "model" not in read:
        assert body.model is None
        return
    assert body.model == read["model"] or type(read["model"]) is not str
    changed = [(name, 'other/"Model"' if name == "model" else value) for name, value in members]
    assert _members(b"".join(body.with_model('other/"Model"'))) == changed


class _Number(str):
    """A number as it is spelled: every difference counts."""

    __slots__ = ()


def _members(data: bytes) -> list[tuple[str, Any]]:
    """The members of the outermost object, in order, as a strict reader of RFC 8259 has them; else ValueError."""
    objects: list[list[tuple[str, Any]]] = []

    def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        objects.append(pairs)
        return dict(pairs)

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    whole = json.loads(
        data.decode(), parse_constant=refuse, parse_int=_Number, parse_float=_Number, object_pairs_hook=read
    )
    return objects[-1] if isinstance(whole, dict) else []


def _is_strict_json(data: bytes) -> bool:
    try:
        _members(data)
    except (ValueError, RecursionError):
        return False
    return True


def front_channel(data: bytes) -> None:
    """A connection whose requests the front channel may take does and asks the same as one that twisted.web reads."""
    answer, first = (*data[:2], 0, 0)[:2]
    pieces = pieces_of(data[2:], first)
    if len(pieces) > 300:
        return  # a second of CPU for nothing new
    worlds = [World(ANSWERS[answer % len(ANSWERS)], front) for front in (True, False)]
    for world in worlds:
        world.send(pieces)
    assert worlds[0].seen() == worlds[1].seen()
    assert worlds[0].metrics.active == worlds[1].metrics.active == 0
    for seconds in (29, 2, 29, 2, 12, 2, 30):  # just before and after each time that a client may take
        for world in worlds:
            world.clock.advance(seconds)
        assert worlds[0].seen() == worlds[1].seen(), "after some time"
    assert not worlds[0].client.connected


@attrs.frozen
class Target:
    """What to fuzz, and words that inputs for it are made of."""

    check: Callable[[bytes], None]
    words: tuple[bytes, ...]


_HEADERS = (
    *(b"Host: x\r\n", b"Content-Length: 15\r\n", b"content-length:2\r\n", b"Connection: keep-alive\r\n", b"\r\n"),
    *(b"Connection: close\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"TE: trailers\r\n"),
    *(
        b"X-Request-Id: a\r\n",
        b"X-Chutes-Autopilot-",
        b"X-Forwarded-For: 1.2.3.4\r\n",
        b"A:\t b \t\r\n",
        b" folded\r\n",
    ),
)
_REQUEST = (b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/chat/completions?a=1 HTTP/1.0\r\n", *_HEADERS)
_JSON = (
    *(b'{"model":', b'"chutesai/AutoPilot"', b'"a/A"', b'"b/B, a/A"', b'"stream":true', b'"prompt_cache_key":"k"'),
    *(
        b'"m\\u006fdel":',
        b'"\\ud83d"',
        b'"\\\\"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"1e999",
        b"-0",
        b"NaN",
        b"null",
    ),
    *(b'"x":{"model":"y"}', b"\xef\xbb\xbf", b"\xff", b" ", b'{"model":"a/A"}', b'"stream":false'),
)
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "ordinary_head": Target(ordinary_head, _REQUEST),
        "response_parser": Target(
            response_parser,
            (
                *(
                    b"\xff",
                    b"HTTP/1.1 200 OK\r\n",
                    b"HTTP/1.0 200\r\n",
                    b"HTTP/1.1 100 C\r\n\r\n",
                    b"HTTP/1.1 204 N\r\n",
                ),
                *(
                    b"5\r\nhello\r\n",
                    b"0\r\n\r\n",
                    b"0\r\nX: y\r\n\r\n",
                    b"2;a=b\r\nab\r\n",
                    b"1\r\na\r\n",
                    b"ab\n",
                    *_HEADERS,
                ),
            ),
        ),
        "whole_answer": Target(
            whole_answer,
            (
                b"\x4f",
                b"HTTP/1.1 200 OK\r\n",
                b"HTTP/1.1 200 \r\n",
                b"HTTP/1.1 404 N\r\n",
                b"Content-Length: 1\r\n\r\nx",
                b"content-length: 01\r\n\r\nx",
                b"Content-Length: 2\r\n\r\nx",
                b"Date: 1\r\n",
                b"Date: 2\r\n",
                b"X-Any: y \r\n",
                b"Content-Type: text/event-stream\r\n",
                *_HEADERS,
            ),
        ),
        "stream_guard": Target(
            stream_guard,
            (
                *(
                    b"data: ",
                    b"data:",
                    b"[DONE]",
                    b"\n",
                    b"\r",
                    b"\n\n",
                    b"\r\n",
                    b": ping\n\n",
                    b"event: x\n",
                    b"\xef\xbb\xbf",
                ),
                *(b'{"error":"x"}', b'{"error":null,"choices":[{"finish_reason":"stop"}]}', b'"finish_reason":"stop"'),
                *(b'{"choices":[{"finish_reason":null}]}', b'{"choices":[{"delta":{"content":"', b"x" * 600),
            ),
        ),
        "model_rewrite": Target(model_rewrite, _JSON),
        "front_channel": Target(
            front_channel,
            (b"\x00\xff", b"\x07\x30", *_REQUEST, *_JSON, b"GET /v1/models HTTP/1.1\r\n", b"f\r\n", b"0\r\n\r\n"),
        ),
    }
)
"""By the name of the folder that holds their seeds."""
