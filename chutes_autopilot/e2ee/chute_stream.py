"""A sealed stream of a chute's instance, opened strictly: what the relay between could have made up is not believed.

Two layers of server-sent events. The outer one comes from the relay in clear and carries records; what the records
hold, joined, is the inner one: the model server's own stream. Where a record ends means nothing there.
"""

from collections.abc import Iterator

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from chutes_autopilot.e2ee.chute import (
    CIPHERTEXT_BYTES,
    NONCE_BYTES,
    STREAM_INFO,
    TAG_BYTES,
    ChuteProtocolError,
    JsonObject,
    ResponseSecret,
    Wishes,
    open_record,
    strict_base64,
)
from chutes_autopilot.wire.event_stream import EventParser, EventTooLarge

DONE = b"[DONE]"
_MAX_CHOICES = 128

SLICE_BYTES = 65536
EVENT_COST = 128
"""How much is opened in one go: events of so many bytes, each counted as so much larger than it is. One record may hold
tens of thousands, which take the better part of a second."""


class _Outer(msgspec.Struct):
    e2e_init: str | msgspec.UnsetType = msgspec.UNSET
    e2e: str | msgspec.UnsetType = msgspec.UNSET
    usage: msgspec.Raw = msgspec.Raw(b"")
    e2e_error: msgspec.Raw = msgspec.Raw(b"")


class _Usage(msgspec.Struct):
    completion_tokens: object = None


class _Choice(msgspec.Struct):
    index: object = None


_OUTER = msgspec.json.Decoder(_Outer)
_USAGE = msgspec.json.Decoder(_Usage)
_CHOICES = msgspec.json.Decoder(list[_Choice])


class ChuteStreamOpener:
    """Takes the outer stream in pieces of any size and gives the inner one, complete events only.

    After a ChuteProtocolError it takes nothing more. What it cannot notice is a record that was left out.

    :param secret: of the attempt; dropped as soon as the stream's key is known.
    :param max_event_bytes: the longest data of one event, outer or inner.
    :param max_records: the most records of one stream.
    """

    def __init__(self, secret: ResponseSecret, wishes: Wishes, *, max_event_bytes: int, max_records: int) -> None:
        self._secret: ResponseSecret | None = secret
        self._cipher: ChaCha20Poly1305 | None = None
        self._outer = EventParser(max_event_bytes=max_event_bytes)
        self._inner = EventParser(max_event_bytes=max_event_bytes)
        self._max_records = max_records
        self._nonces: set[bytes] = set()
        self._chunks = _Chunks(wishes)
        self._slices: Iterator[bytes] | None = None
        self.done = False
        """Whether the stream came to its authenticated end; everything after it is ignored."""

    def __repr__(self) -> str:
        return f"ChuteStreamOpener(done={self.done})"

    @property
    def authenticated(self) -> bool:
        """Whether a record was opened, so that the instance itself was heard."""
        return bool(self._nonces)

    @property
    def more(self) -> bool:
        """Whether there is more of what was fed last: it is to be taken before anything else is fed."""
        return self._slices is not None

    def feed(self, data: bytes) -> bytes:
        """The clear events that ``data`` completes, each as ``data: ...`` and a blank line; the first of very many.

        Raises ChuteProtocolError; the clear events before the fault are on it.
        """
        return b"" if self.done else self._begin_slices(_events(self._outer, data))

    def end(self) -> bytes:
        """The body ended cleanly: the clear events that this completes. Raises ChuteProtocolError.

        What a cut left of an event is ``truncated`` too; only ``[DONE]`` needs no blank line behind it.
        """
        return b"" if self.done else self._begin_slices(iter(self._outer.end()), last=True)

    def take(self) -> bytes:
        """The next events of what was fed, while there are `more`. Raises ChuteProtocolError as `feed`."""
        assert self._slices is not None  # noqa: S101 - the caller looks
        try:
            return next(self._slices)
        except Exception:
            self._slices = None
            raise

    def _begin_slices(self, outer: Iterator[bytes], *, last: bool = False) -> bytes:
        self._slices = self._opened(outer, last=last)
        return self.take()

    def _opened(self, outer: Iterator[bytes], *, last: bool = False) -> Iterator[bytes]:
        """What is opened, in slices that cost a few milliseconds each; the last one may be empty."""
        opened: list[bytes] = []
        cost = 0
        try:
            for kept, size in self._inner_events(outer, last=last):
                opened.append(kept)
                cost += size + EVENT_COST
                if cost >= SLICE_BYTES:
                    yield b"".join(opened)
                    opened.clear()
                    cost = 0
        except ChuteProtocolError as fault:
            cut = last and fault.code in ("garbage", "bad_blob")
            raise ChuteProtocolError("truncated" if cut else fault.code, b"".join(opened)) from None
        self._slices = None
        yield b"".join(opened)

    def _inner_events(self, outer: Iterator[bytes], *, last: bool) -> Iterator[tuple[bytes, int]]:
        """Each inner event as it is relayed, none of it where it is not, and its size."""
        for event in outer:
            clear = self._record(event)
            for start in range(0, len(clear), SLICE_BYTES):
                yield from self._relay(_events(self._inner, clear[start : start + SLICE_BYTES]))
                if self.done:
                    return
        if last:
            yield from self._relay(data for data in self._inner.end() if data.strip() == DONE)
            if not self.done:
                raise ChuteProtocolError("truncated" if self._cipher else "no_init")

    def _relay(self, inner: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
        for data in inner:
            if data.strip() == DONE:
                if not self._chunks.seen:
                    raise ChuteProtocolError("truncated")
                self.done = True
                self._nonces = {next(iter(self._nonces))}  # a million of them are 100 MB
                yield b"data: [DONE]\n\n", len(data)
                return
            kept = self._chunks.take(data)
            yield b"data: %b\n\n" % kept.replace(b"\n", b"\ndata: ") if kept else b"", len(data)

    def _record(self, data: bytes) -> bytes:
        """The clear bytes of one outer event; none for those that have none."""
        if data.strip() == DONE:
            return b""
        try:
            event = _OUTER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ChuteProtocolError("garbage") from None
        usage, error = bool(bytes(event.usage)), bool(bytes(event.e2e_error))
        match event.e2e_init, event.e2e, usage, error:
            case msgspec.UNSET, str(record), False, False:
                return self._open(record)
            case str(init), msgspec.UNSET, False, False:
                self._begin(init)
            case msgspec.UNSET, msgspec.UNSET, True, False:
                pass  # the relay can forge it; the encrypted chunks have counters of their own
            case msgspec.UNSET, msgspec.UNSET, False, True:
                raise ChuteProtocolError("clear_error")
            case _:
                raise ChuteProtocolError("garbage")
        return b""

    def _begin(self, init: str) -> None:
        if self._secret is None:
            raise ChuteProtocolError("second_init")
        try:
            ciphertext = strict_base64(init, CIPHERTEXT_BYTES)
        except ValueError:
            raise ChuteProtocolError("bad_blob") from None
        self._cipher = ChaCha20Poly1305(self._secret.key(ciphertext, STREAM_INFO))
        self._secret = None

    def _open(self, text: str) -> bytes:
        if self._cipher is None:
            raise ChuteProtocolError("no_init")
        try:
            record = strict_base64(text)
        except ValueError:
            raise ChuteProtocolError("bad_blob") from None
        if len(record) < NONCE_BYTES + TAG_BYTES:
            raise ChuteProtocolError("bad_blob")
        nonce = record[:NONCE_BYTES]
        if nonce in self._nonces:
            raise ChuteProtocolError("duplicate_record")
        clear = open_record(self._cipher, record)
        if len(self._nonces) >= self._max_records:
            raise ChuteProtocolError("too_large")
        self._nonces.add(nonce)
        return clear


class _Chunks:
    """Judges the inner events one by one, and takes out the counters that the client did not ask for."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._counted: dict[int, int] = {}
        self.seen = False

    def take(self, data: bytes) -> bytes:
        """The event as the client gets it, none where it does not. Raises ChuteProtocolError."""
        try:
            event = JsonObject(data)
        except ValueError:
            raise ChuteProtocolError("garbage") from None
        self.seen = True
        usage = event.members.get("usage")
        if usage is None or bytes(event.members.get("error", b"null")) != b"null":
            return data
        choice = _first_choice(event)
        self._check_order(usage, choice)
        if choice is None:
            return data if self._wishes.usage else b""
        if self._wishes.continuous_usage:
            return data
        del event.members["usage"]
        return event.encode()

    def _check_order(self, usage: msgspec.Raw, choice: int | None) -> None:
        """Counters never fall in a stream that comes in order; each choice has a counter, the last chunk their sum."""
        try:
            tokens = _USAGE.decode(usage).completion_tokens
        except msgspec.DecodeError:
            return
        if not isinstance(tokens, int) or isinstance(tokens, bool):
            return
        last = max(self._counted.values(), default=0) if choice is None else self._counted.get(choice, 0)
        if tokens < last:
            raise ChuteProtocolError("reordered")
        self._counted[-1 if choice is None else choice] = tokens


def _first_choice(event: JsonObject) -> int | None:
    """The index of the event's first choice, 0 where that says nothing; None where the list of choices is empty."""
    try:
        choices = _CHOICES.decode(event.members.get("choices", b"[{}]"))
    except msgspec.DecodeError:
        return 0
    if not choices:
        return None
    index = choices[0].index
    return index if isinstance(index, int) and 0 <= index < _MAX_CHOICES else 0


def _events(parser: EventParser, data: bytes) -> Iterator[bytes]:
    try:
        yield from parser.feed(data)
    except EventTooLarge as large:
        yield from large.events
        raise ChuteProtocolError("too_large") from None
