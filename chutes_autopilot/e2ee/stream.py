"""The answer to an encrypted request where it is a stream: one event in, one sealed event out, or the end of it.

An event that cannot be read or sealed is never passed on and never left out: it fails the stream.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from chutes_autopilot.e2ee.allow_list import COVERED, AnswerSealer, SealContext
from chutes_autopilot.e2ee.response import UpstreamError, compact_ascii
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

FailureCode = Literal["upstream_error", "e2ee_encryption_failed", "upstream_stream_truncated"]

_CHUNK = msgspec.json.Decoder(dict[str, Any])
_NEW_NONCE = " To try again, send a new nonce."


class StreamFailed(Exception):
    """The stream cannot go on; the text is a constant for its code.

    :param code: what the client is told.
    :param sealed: the events sealed before, in the piece that failed; to be emitted before the failure.
    """

    def __init__(self, code: FailureCode, sealed: bytes) -> None:
        super().__init__(code)
        self.code = code
        self.sealed = sealed


def failure_error(code: FailureCode) -> ApiError:
    """The failure as an answer of its own, for as long as nothing is committed; its status is 502."""
    match code:
        case "upstream_error":
            return UpstreamError(502, code)
        case "e2ee_encryption_failed":
            return e2ee_error(code, "The upstream's answer could not be encrypted, so it is withheld." + _NEW_NONCE)
        case "upstream_stream_truncated":
            return e2ee_error(code, "The upstream's answer ended before it was complete." + _NEW_NONCE)


def failure_event(code: FailureCode) -> bytes:
    """The last event of a stream that failed; the connection is aborted after it."""
    return b"data: " + failure_error(code).body() + b"\n\n"


class StreamSealer:
    """Seals a stream piece by piece, and decides whether it ended as it should.

    After StreamFailed nothing more may be fed. After `done` what is fed is ignored.

    :param max_event_bytes: the longest data of one upstream event.
    :param coalesce: merge deltas of the same choice and field that stand side by side in one `feed`; whoever collects
        bytes for a while before feeding them then hides the lengths of the single deltas.
    """

    def __init__(self, ctx: SealContext, *, max_event_bytes: int, coalesce: bool = False) -> None:
        self._ctx = ctx
        self._parser = EventParser(max_event_bytes=max_event_bytes)
        self._coalesce = coalesce
        self._sealer: AnswerSealer | None = None
        self._comments = 0
        self.done = False
        """Whether ``[DONE]`` was emitted."""

    @property
    def emitted_id(self) -> str | None:
        """The ``id`` in every event of the stream; None before the first."""
        return None if self._sealer is None else self._sealer.id

    @property
    def emitted_model(self) -> str | None:
        """The ``model`` in every event of the stream; None before the first."""
        return None if self._sealer is None else self._sealer.model

    def feed(self, data: bytes) -> bytes:
        """The sealed form of the events these bytes complete; a comment of ours where there were only comments.

        :raises StreamFailed: upstream_error, e2ee_encryption_failed.
        """
        if self.done:
            return b""
        too_large = False
        try:
            events = self._parser.feed(data)
        except EventTooLarge as error:
            events, too_large = error.events, True
        sealed = self._seal(events, "e2ee_encryption_failed" if too_large else None)
        comments, self._comments = self._comments, self._parser.comments
        if not sealed and self._sealer is not None and self._comments > comments:
            return KEEP_ALIVE
        return sealed

    def end(self) -> bytes:
        """The sealed form of the event that the body's clean end completes.

        :raises StreamFailed: upstream_stream_truncated if there never was a ``[DONE]``; those of `feed`.
        """
        return b"" if self.done else self._seal(self._parser.end(), "upstream_stream_truncated")

    def _seal(self, events: Sequence[bytes], failure: FailureCode | None) -> bytes:
        """Seal events; ``failure`` is what follows them unless they end the stream themselves."""
        chunks, ending = _read(events)
        sealed: list[bytes] = []
        try:
            for chunk in _merged(chunks) if self._coalesce else chunks:
                if self._sealer is None:
                    self._sealer = AnswerSealer.for_answer(chunk, self._ctx, stream=True)
                sealed.append(b"data: " + compact_ascii(self._sealer.seal(chunk)) + b"\n\n")
        except Exception:  # noqa: BLE001 - whatever it was, its text may be the answer's
            ending = "e2ee_encryption_failed"
        if ending == "done":
            self.done = True
            sealed.append(DONE)
        elif (code := ending or failure) is not None:
            raise StreamFailed(code, b"".join(sealed))
        return b"".join(sealed)


def _read(events: Iterable[bytes]) -> tuple[list[dict[str, Any]], FailureCode | Literal["done"] | None]:
    """The chunks that the events are, up to the first that ends the stream, and how that ends it."""
    chunks: list[dict[str, Any]] = []
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        for event in events:
            if event.strip() == b"[DONE]":
                return chunks, "done"
            chunk = _CHUNK.decode(event)
            if chunk.get("error") is not None:
                return chunks, "upstream_error"
            chunks.append(chunk)
        return chunks, None
    return chunks, "e2ee_encryption_failed"


def _merged(chunks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The chunks, but those side by side that only go on with the same text as one."""
    last: dict[str, Any] | None = None
    last_place: tuple[object, str] | None = None
    for chunk in chunks:
        place = _place_of_text(chunk)
        if last is not None and place is not None and place == last_place:
            last["choices"][0]["delta"][place[1]] += chunk["choices"][0]["delta"][place[1]]
            continue
        if last is not None:
            yield last
        last, last_place = chunk, place
    if last is not None:
        yield last


def _place_of_text(chunk: dict[str, Any]) -> tuple[object, str] | None:
    """The index and the member of the one text that is all a chunk brings; None if it brings anything else."""
    match chunk:
        case {"choices": [{"delta": dict(delta)} as choice]} if chunk.get("usage") is None:
            brought = [name for name, value in delta.items() if value is not None]
            others = [name for name, value in choice.items() if value is not None and name not in ("index", "delta")]
            if len(brought) == 1 and brought[0] in COVERED and isinstance(delta[brought[0]], str) and not others:
                return choice.get("index"), brought[0]
    return None
