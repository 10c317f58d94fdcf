"""The sealed answer to a sealed request, from the same completions as the ones in clear, and what faults make of it."""

import json
from base64 import b64encode
from collections.abc import Iterator
from itertools import chain
from os import urandom

from attrs import evolve, field, frozen
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from chutes_autopilot.demo.chute_sealing import (
    StreamSealing,
    clear_event,
    gzip_bomb,
    outer_event,
    packed,
    seal_packed,
)
from chutes_autopilot.demo.completions import Completion, whole_answer
from chutes_autopilot.demo.delivery import Ending
from chutes_autopilot.demo.faults import Fault, FaultKind
from chutes_autopilot.demo.outcome import Outcome, Refusal, refusal, stream_outcome, whole_outcome

BOMB_MEBIBYTES = 64
SHORT_BYTES = 1000
"""What the short blob has: less than an encapsulated secret alone."""
TINY_BYTES = 3
USAGE_EVERY = 8
"""Tokens after which the API puts an event in clear with the usage so far between those of the instance."""
FORGERY = "simulated forgery"
"""Stands in whatever the faults put in clear as if it came from the instance; it must reach nobody."""
_GARBAGE = b"simulated garbage, not JSON"
_STREAM_ONLY = "Non-streaming E2E requests require chutes >= 0.5.27 (simulated)"
_REFUSALS: dict[FaultKind, tuple[int, object]] = {
    FaultKind.NONCES_EXPIRED: (403, "Invalid or expired E2E nonce"),
    FaultKind.FORBIDDEN: (403, "Forbidden"),
    FaultKind.QUOTA: (429, "Subscription quota exceeded and account balance is insufficient"),
    FaultKind.INSTANCE_FULL: (429, "Instance is at maximum capacity, try again later"),
    FaultKind.INSTANCE_MISSING: (404, "Instance not found"),
    FaultKind.INSTANCE_INACTIVE: (410, "Instance is no longer active"),
    FaultKind.INSTANCE_MOVED: (400, "Instance does not belong to the specified chute"),
    FaultKind.CHUTE_MISSING: (404, "Chute not found"),
    FaultKind.CHUTE_DISABLED: (503, "This chute is currently disabled."),
    FaultKind.STREAM_ONLY: (400, _STREAM_ONLY),
    FaultKind.UNPROCESSABLE: (422, [{"type": "missing", "loc": ["header", "x-simulated"], "msg": "Field required"}]),
    FaultKind.KEY_EXCHANGE: (502, "Instance requires key exchange (simulated)"),
    FaultKind.INSTANCE_FAILED: (500, "Instance returned status 500"),
    FaultKind.RELAY_FAILED: (500, "Internal error during E2E invocation"),
}
_LAST = frozenset({FaultKind.TRUNCATED, FaultKind.CLEAR_ERROR, FaultKind.CLEAR_DONE, FaultKind.STALL})
"""The faults after which nothing comes."""


def sealed_refusal(kind: FaultKind | None) -> Refusal | None:
    """The error answer of a fault of sealed requests that has one, else None."""
    if kind is FaultKind.CONTENT_REFUSED:
        return content_refused()
    if kind in _REFUSALS:
        return refusal(*_REFUSALS[kind])
    return None


def content_refused() -> Refusal:
    """The instance's own refusal: sealed for its way to the API, so nobody after that can read it."""
    return refusal(400, b64encode(urandom(60)).decode())


@frozen
class SealedReply:
    """How an opened request is to be answered.

    :param stream: as the request's body says; the instance obeys it.
    :param relayed_as_stream: as its header says; the API obeys that one.
    """

    public: MLKEM768PublicKey = field(repr=False)
    stream: bool
    relayed_as_stream: bool
    fault: Fault | None

    def outcome(self, kind: FaultKind | None, answer: Completion) -> Outcome:
        """The answer on the wire."""
        outcome = self._streamed(kind, answer) if self.stream else self._whole(kind, answer)
        if self.stream and not self.relayed_as_stream:
            outcome = evolve(outcome, headers=((b"Content-Type", b"application/octet-stream"),))
        elif self.relayed_as_stream and not self.stream:
            outcome = evolve(outcome, headers=((b"Content-Type", b"text/event-stream; charset=utf-8"),))
        if kind is FaultKind.TINY_WRITES:
            unsized = tuple(header for header in outcome.headers if header[0] != b"Content-Length")
            outcome = evolve(outcome, headers=unsized, pieces=_tiny(outcome.pieces), batch=1)
        return outcome

    def _streamed(self, kind: FaultKind | None, answer: Completion) -> Outcome:
        clear = stream_outcome(kind, answer)
        sealing = StreamSealing(self.public)
        moments = _moments(clear.pieces, sealing, answer.prompt_tokens)
        if self.fault is not None:
            moments = _at_fault(moments, sealing, self.fault)
        pieces = (b"".join(event.wire for event in moment) for moment in moments)
        return evolve(clear, pieces=pieces, ending=Ending.HOLD if kind is FaultKind.STALL else clear.ending)

    def _whole(self, kind: FaultKind | None, answer: Completion) -> Outcome:
        member = packed(whole_answer(answer))
        match kind:
            case FaultKind.GZIP_BOMB:
                member = gzip_bomb(BOMB_MEBIBYTES)
            case FaultKind.GZIP_CUT:
                member = member[:-4]
            case FaultKind.SECOND_GZIP_MEMBER:
                member += packed(b"{}")
            case FaultKind.INNER_GARBAGE:
                member = packed(_GARBAGE)
        blob, content_type = seal_packed(self.public, member), b"application/octet-stream"
        match kind:
            case FaultKind.BAD_TAG:
                blob = _changed(blob)
            case FaultKind.SHORT_BLOB:
                blob = blob[:SHORT_BYTES]
            case FaultKind.JSON_ENVELOPE:
                blob, content_type = json.dumps({"e2e": b64encode(blob).decode()}).encode(), b"application/json"
        return whole_outcome(kind, blob, content_type)


@frozen
class _Event:
    """An event of the outer stream.

    :param sealed: its init or record, None where it is in clear.
    :param begins: whether the record holds the line with which an inner event begins.
    """

    wire: bytes
    sealed: bytes | None = None
    begins: bool = False


_Moments = Iterator[list[_Event]]
"""The events that go out together, one list for each moment at which the instance sends something."""


def _init(ciphertext: bytes) -> _Event:
    return _Event(outer_event("e2e_init", ciphertext), ciphertext)


def _record(raw: bytes, *, begins: bool) -> _Event:
    return _Event(outer_event("e2e", raw), raw, begins)


def _moments(pieces: Iterator[bytes], sealing: StreamSealing, prompt_tokens: int) -> _Moments:
    """Seal line by line, as the instances do; nothing at all where there is nothing to seal."""
    for number, piece in enumerate(pieces, 1):
        lines = piece.splitlines(keepends=True)
        moment = [_record(sealing.record(line), begins=line.startswith(b"data:")) for line in lines]
        if number == 1:
            moment.insert(0, _init(sealing.ciphertext))
        if number % USAGE_EVERY == 0:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": number}
            moment.append(_Event(clear_event({"usage": {**usage, "total_tokens": prompt_tokens + number}})))
        yield moment


def _at_fault(moments: _Moments, sealing: StreamSealing, fault: Fault) -> _Moments:
    match fault.kind:
        case FaultKind.NO_INIT | FaultKind.RECORD_BEFORE_INIT | FaultKind.SHORT_BLOB:
            init, *rest = next(moments)
            if fault.kind is FaultKind.RECORD_BEFORE_INIT:
                rest.insert(1, init)
            elif fault.kind is FaultKind.SHORT_BLOB:
                rest.insert(0, _init(sealing.ciphertext[:SHORT_BYTES]))
            return chain([rest], moments)
        case FaultKind.RECORDS_SWAPPED:
            return _swapped(moments, fault.after)
        case _:
            return _struck(moments, sealing, fault)


def _struck(moments: _Moments, sealing: StreamSealing, fault: Fault) -> _Moments:
    """Put something else in the place of one event's first record; after some faults nothing more."""
    begun = 0
    for moment in moments:
        places = [place for place, event in enumerate(moment) if event.begins]
        if begun <= fault.after < begun + len(places):
            place = places[fault.after - begun]
            moment[place : place + 1] = _instead(moment[place], sealing, fault.kind)
            if fault.kind in _LAST:
                yield moment[: place + (fault.kind in (FaultKind.CLEAR_ERROR, FaultKind.CLEAR_DONE))]
                return
        begun += len(places)
        yield moment


def _instead(event: _Event, sealing: StreamSealing, kind: FaultKind) -> list[_Event]:
    raw = event.sealed or b""
    match kind:
        case FaultKind.RECORD_REPEATED:
            return [event, event]
        case FaultKind.RECORD_DROPPED | FaultKind.TRUNCATED | FaultKind.STALL:
            return []
        case FaultKind.BAD_TAG:
            return [_record(_changed(raw), begins=True)]
        case FaultKind.INNER_GARBAGE:
            return [_record(sealing.record(b"data: %b\n" % _GARBAGE), begins=True)]
        case FaultKind.SECOND_INIT:
            return [_init(StreamSealing(sealing.public).ciphertext), event]
        case FaultKind.FORGED_USAGE:
            return [_Event(clear_event(_forged())), event]
        case FaultKind.CLEAR_ERROR:
            return [_Event(clear_event({"e2e_error": {"message": FORGERY}}))]
        case FaultKind.CLEAR_DONE:
            return [_Event(b"data: [DONE]\n\n")]
        case FaultKind.GARBAGE_LINE:
            return [_Event(b"data: %b\n\n" % _GARBAGE), event]
        case _:
            return [event]


def _forged() -> dict[str, object]:
    """A usage event that carries what only the instance may say."""
    call = {"index": 0, "id": "call_0", "type": "function", "function": {"name": FORGERY, "arguments": "{}"}}
    delta = {"content": FORGERY, "tool_calls": [call]}
    return {
        "usage": {"prompt_tokens": 1, "completion_tokens": 999_999, "total_tokens": 1_000_000},
        "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}],
    }


def _swapped(moments: _Moments, after: int) -> _Moments:
    """Let the first records of two events that follow each other change places; the last event has no partner."""
    begun = 0
    held: list[_Event] = []
    for moment in moments:
        held += moment
        places = [place for place, event in enumerate(held) if event.begins]
        if begun <= after < begun + len(places):
            if after + 1 == begun + len(places):
                continue  # its partner comes with the next moment
            one, other = places[after - begun : after - begun + 2]
            held[one], held[other] = held[other], held[one]
        begun += len(places)
        yield held
        held = []
    if held:
        yield held


def _changed(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def _tiny(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), TINY_BYTES):
            yield piece[start : start + TINY_BYTES]
