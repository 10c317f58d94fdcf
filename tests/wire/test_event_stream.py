"""Reading whole events from a stream's bytes."""

import re
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge

PIECES = st.sampled_from(
    [b"data", b":", b" ", b"data: ", b"x", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"event: y", "\u2028\x85".encode()]
)


def events_of(*pieces: bytes, limit: int = 1000) -> list[bytes]:
    parser = EventParser(max_event_bytes=limit)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.end()


def as_the_standard_says(stream: bytes) -> list[bytes]:
    """The same rules once more, over the whole stream and one by one."""
    events, data = [], None
    for line in [*re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf")), b""]:
        name, colon, value = line.partition(b":")
        if not line:
            if data is not None:
                events.append(data)
            data = None
        elif name == b"data":
            value = value.removeprefix(b" ") if colon else b""
            data = value if data is None else data + b"\n" + value
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata:b\n\n", [b"a", b"b"]),
        (b"data:  a \r\n\r\ndata: b\r\rdata: c\n\r", [b" a ", b"b", b"c"]),
        (b"data: a\ndata\ndata: b\n\n", [b"a\n\nb"]),
        (b"data\n\n", [b""]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
        (b"event: e\nid: 1\nretry: 2\nother\n\n: comment\n\n", []),
        (b" data: a\ndata : b\nDATA: c\ndatax: d\n\n", []),
        ("data: a\u2028\u2029\x85\x0b\x0cb\n\n".encode(), ["a\u2028\u2029\x85\x0b\x0cb".encode()]),
        (b"data: a\n\n\n\n\ndata: b\n", [b"a", b"b"]),
        (b"data: a\ndata: b", [b"a\nb"]),
        (b"data: a\r", [b"a"]),
        (b"", []),
    ],
)
def test_events_are_read_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    """The data of each event comes out joined with LF; all other fields, and events without data, do not."""
    assert events_of(stream) == events
    assert as_the_standard_says(stream) == events


@settings(deadline=None)
@given(st.lists(PIECES, max_size=30), st.data())
def test_where_a_stream_is_split_does_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    """Any stream in any pieces gives the events of the whole."""
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    expected = as_the_standard_says(stream)
    assert events_of(*pieces) == expected
    assert events_of(*(stream[i : i + 1] for i in range(len(stream)))) == expected


def test_a_cr_at_the_end_of_a_piece_waits() -> None:
    """CR LF in two pieces is one line end, so that no event is cut in two."""
    parser = EventParser(max_event_bytes=100)
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\ndata: b\r") == []
    assert parser.feed(b"\r") == []
    assert parser.feed(b"\n") == [b"a\nb"]


def test_comments_are_counted() -> None:
    """Comments come out as a number, not as text."""
    parser = EventParser(max_event_bytes=100)
    parser.feed(b": one\n:two\n\ndata: :three\n\n:fo")
    assert parser.comments == 2
    parser.feed(b"ur\n")
    assert parser.comments == 3


@pytest.mark.parametrize(
    "fill",
    [
        lambda size: b"data: " + b"x" * size + b"\n\n",
        lambda size: b"data:" + b"x" * size + b"\n\n",
        lambda size: b"data: x\n" * (size // 2) + b"data\n" * (size % 2 + 1) + b"\n",
        lambda size: b"\xef\xbb\xbfdata: " + b"x" * size + b"\n\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_of_the_limit_passes_and_a_longer_one_does_not(fill: object, step: int) -> None:
    """The limit counts an event's data, however it is spread over lines and pieces."""
    assert callable(fill)

    def pieces(size: int) -> list[bytes]:
        stream = fill(size)
        return [stream[i : i + step] for i in range(0, len(stream), step)]

    assert len(events_of(*pieces(60), limit=60)[0]) == 60
    with pytest.raises(EventTooLarge):
        events_of(*pieces(61), limit=60)


def test_no_unfinished_line_outgrows_the_limit() -> None:
    """A line without end is refused whatever it is, a comment too."""
    for line in (b"data: ", b": ", b"other: ", b""):
        with pytest.raises(EventTooLarge):
            events_of(line, *[b"x" * 10] * 200)


def test_events_before_one_that_is_too_large_are_not_lost() -> None:
    """The error brings the events complete before it, and a constant text."""
    for bad in (b"data: Secret too long\n", b"data: Secret too long"):
        parser = EventParser(max_event_bytes=10)
        with pytest.raises(EventTooLarge) as caught:
            parser.feed(b"data: a\n\ndata: b\n\n" + bad)
        assert caught.value.events == [b"a", b"b"]
        assert "Secret" not in repr(caught.value)


def test_a_long_line_in_small_pieces_costs_no_more_than_its_length() -> None:
    """Pieces are joined once per line: byte by byte, 300 kB take far less than the second that copying would."""
    parser = EventParser(max_event_bytes=1_000_000)
    start = process_time()
    for _ in range(300_000):
        parser.feed(b"x")
    assert process_time() - start < 1.5
