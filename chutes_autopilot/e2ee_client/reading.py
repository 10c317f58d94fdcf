"""Read a sealed answer to its end and give out what it says in clear, with a record to check its signature by."""

from collections.abc import Callable, Set
from hashlib import sha256
from typing import Any, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from chutes_autopilot.e2ee_client.errors import AnswerRefused, ClientError, GatewayFailed
from chutes_autopilot.e2ee_client.gateway import SealedAnswer
from chutes_autopilot.e2ee_client.opening import StreamOpener, open_completion
from chutes_autopilot.e2ee_client.proof import ExchangeRecord
from chutes_autopilot.e2ee_client.transport import BodyReceiver, ended_whole, read_whole, unreachable, within

MAX_ANSWER_BYTES = 96 * 1024 * 1024
"""A whole sealed answer; the service bounds what it seals to 32 MiB by default, and hex doubles it."""

ANSWER_SECONDS = 600.0
"""For the body of an answer that comes whole; its head came with its first byte."""

SILENCE_SECONDS = 300.0
"""How long a stream may bring nothing, not even a comment, while its reader waits."""


async def read_answer(answer: SealedAnswer, reactor: Any, in_clear: Set[str]) -> tuple[bytes, ExchangeRecord]:
    """The clear JSON of an answer that comes whole; raises AnswerRefused or GatewayFailed."""
    body: bytes = await within(reactor, ANSWER_SECONDS, read_whole(answer.response, MAX_ANSWER_BYTES))
    opening = deferToThreadPool(reactor, reactor.getThreadPool(), open_completion, body, answer.fields, in_clear)
    opened, answer_id = await opening
    return opened, answer.record(answer_id, sha256(body).hexdigest())


class AnswerStream(BodyReceiver):
    """Opens a stream as it comes: each piece of the body is opened and given out at once, nothing is kept.

    Give it to ``answer.response.deliverBody``. Exactly one of ``ended`` and ``failed`` is called, unless it is aborted
    before; where a stream fails, the connection is cut first. The final ``[DONE]`` is not given out, see StreamOpener.

    :param opened: takes clear events.
    """

    def __init__(
        self,
        answer: SealedAnswer,
        in_clear: Set[str],
        clock: IReactorTime,
        opened: Callable[[bytes], None],
        ended: Callable[[ExchangeRecord], None],
        failed: Callable[[ClientError], None],
    ) -> None:
        self._answer = answer
        self._opener = StreamOpener(answer.fields, in_clear)
        self._hash = sha256()
        self._clock = clock
        self._opened, self._ended, self._failed = opened, ended, failed
        self._silence: IDelayedCall | None = None
        self._over = False

    def connectionMade(self) -> None:
        self._listen()

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        if self._silence is not None:
            self._silence.reset(SILENCE_SECONDS)
        self._hash.update(data)
        try:
            self._give(self._opener.feed(data))
        except AnswerRefused as refusal:
            self._refused(refusal)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._over:
            return
        if not ended_whole(reason):
            self._fail(unreachable(cast(Exception, reason.value)))
            return
        try:
            self._give(self._opener.end())
        except AnswerRefused as refusal:
            self._refused(refusal)
            return
        if not self._over:  # whoever was given the last events may have aborted
            self._stop()
            self._ended(self._answer.record(self._opener.answer_id or "", self._hash.hexdigest()))

    def abort(self) -> None:
        """Nobody reads any more: cut the connection and call nothing back."""
        self._stop()
        super().abort()

    def pause(self) -> None:
        """Read no more until resume; silence is the reader's wish then, and not counted."""
        if not self._over and self.transport is not None:
            self._hush()
            cast(Any, self.transport).pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if not self._over and self.transport is not None:
            self._listen()
            cast(Any, self.transport).resumeProducing()

    def _give(self, opened: bytes) -> None:
        if opened:
            self._opened(opened)

    def _refused(self, refusal: AnswerRefused) -> None:
        self._give(refusal.opened)
        self._fail(refusal)

    def _fail(self, error: ClientError) -> None:
        if not self._over:
            self.abort()
            self._failed(error)

    def _listen(self) -> None:
        self._hush()
        self._silence = self._clock.callLater(SILENCE_SECONDS, self._silent)

    def _silent(self) -> None:
        self._silence = None
        self._fail(GatewayFailed("gateway_timeout", f"The gateway sent nothing for {SILENCE_SECONDS:g} seconds."))

    def _hush(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _stop(self) -> None:
        self._over = True
        self._hush()
