"""The two sides of a pipe in memory."""

from typing import Any

from attrs import define, field
from zope.interface import implementer

from chutes_autopilot.interfaces import IDownstream, IUpstreamAttempt


@implementer(IUpstreamAttempt)
@define(eq=False)
class Upstream:
    """An attempt that remembers what was asked of it."""

    observer: Any = None
    asked: list[str] = field(factory=list)

    def start(self) -> None:
        self.asked.append("start")

    def expect_body(self, timeout: float) -> None:
        self.asked.append("expect_body")

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def abort(self) -> None:
        self.asked.append("abort")


@implementer(IDownstream)
@define(eq=False)
class Client:
    """A client's side that remembers what it was given and how it ended."""

    written: bytes = b""
    ends: list[str] = field(factory=list)
    waiting: int = 0

    def start(self, head: Any, own: bytes, producer: Any, keeps_body: bool = False) -> None:
        """The head is nothing to these tests."""

    def answer(self, head: Any, own: bytes, data: bytes) -> None:
        raise AssertionError("a pipe relays in pieces")

    def write(self, data: bytes, framed: bytes = b"") -> None:
        assert not self.ends
        self.written += data

    def finish(self) -> None:
        self.ends.append("finish")

    def abort(self) -> None:
        self.ends.append("abort")

    def unsent(self) -> int:
        return self.waiting

    def reset(self) -> None:
        self.ends.append("reset")
