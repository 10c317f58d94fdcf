"""The ports: what has, or will have, more than one implementation."""

from typing import Any

from zope.interface import Attribute, Interface


class IStickyStore(Interface):
    """Where a client's last choice is remembered between requests.

    Losing an entry costs a warm prompt cache and nothing else, so a store may forget at any time.
    """

    def get(key: bytes) -> Any:
        """The policy.stickiness.StickyChoice last put under a client key, None where there is none (any more)."""

    def put(key: bytes, choice: Any) -> None:
        """Remember a policy.stickiness.StickyChoice; its time to live starts anew."""


class IReplayClaims(Interface):
    """Where the nonces of encrypted requests are claimed, each exactly once.

    It fails closed: whatever cannot be remembered until its end is refused, never accepted.
    """

    def claim(name: str, expiry: int) -> Any:
        """A Deferred[None] that fires when nobody else can claim this name (any more) until ``expiry``, Unix seconds.

        It fails with ApiError: e2ee_replay_detected where the name is claimed already, e2ee_invalid_timestamp where
        ``expiry`` is past, e2ee_replay_cache_full or e2ee_replay_unavailable where the claim cannot be kept. A claim
        is never given back, whatever becomes of the request.
        """


class IUpstreamAttempt(Interface):
    """One try to get an answer from one model."""

    observer = Attribute("The IAttemptObserver that hears of the answer; replaced at the commit boundary.")

    def start() -> None:
        """Send the request."""

    def expect_body(timeout: float) -> None:
        """The first body byte must arrive within ``timeout`` seconds from now.

        Before the head, which only a plain attempt is asked (no other is ever one of two): the head must, from now or
        from the last request byte, whatever it was given at first.
        """

    def pause() -> None:
        """Read no more from the upstream until `resume`."""

    def resume() -> None:
        """Go on reading."""

    def abort() -> None:
        """Drop the attempt in whatever phase it is; the observer hears nothing more."""


class IAttemptObserver(Interface):
    """Whoever is told what becomes of an attempt: one head, body pieces, then `end` or `failed`; or one `answer`."""

    def head(head: Any) -> None:
        """The complete final head arrived, a wire.http1.ResponseHead."""

    def body(data: bytes, framed: bytes = b"") -> None:
        """Body bytes arrived; never empty. ``framed``: the same bytes in whole chunks, where they came so."""

    def end() -> None:
        """The response is complete."""

    def answer(head: Any, data: bytes) -> None:
        """The whole response arrived at once, with a body: `head`, `body` and `end` in one."""

    def failed(failure: Any) -> None:
        """The attempt broke: policy.failover's ConnectFailed or DeadlinePassed before the head, or Lost after it."""


class IDownstream(Interface):
    """The client's side of one exchange."""

    def start(head: Any, own: bytes, producer: Any, keeps_body: bool = False) -> None:
        """Begin the answer: the upstream's end-to-end fields in their order, then ``own``.

        :param head: the upstream's wire.http1.ResponseHead.
        :param own: further header lines, each with its line end.
        :param producer: an IPushProducer that is paused while the client reads too slowly.
        :param keeps_body: the request's body is still held, until the answer ends; else it has been dropped.
        """

    def write(data: bytes, framed: bytes = b"") -> None:
        """Write body bytes; none at all: let the head go out before the body has begun.

        :param framed: the same bytes in whole chunks, where they came so.
        """

    def answer(head: Any, own: bytes, data: bytes) -> None:
        """Write a whole answer at once: `start`, `write` and `finish` in one."""

    def finish() -> None:
        """The answer is complete."""

    def abort() -> None:
        """End the answer so that the client sees it was cut."""

    def unsent() -> int:
        """How many bytes of what was written the client's connection has yet to take; falls while it takes some."""

    def reset() -> None:
        """Close the client's connection at once, whatever it has yet to take."""
