"""A local OpenAI-compatible endpoint: what a program sends here leaves this machine sealed, and comes back opened."""

from collections.abc import Callable, Coroutine
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from chutes_autopilot.e2ee_client.errors import ClientError
from chutes_autopilot.e2ee_client.gateway import Gateway, SealedAnswer
from chutes_autopilot.e2ee_client.local_site import LocalRequest
from chutes_autopilot.e2ee_client.opening import DONE
from chutes_autopilot.e2ee_client.proof import ExchangeRecord
from chutes_autopilot.e2ee_client.reading import AnswerStream, read_answer
from chutes_autopilot.e2ee_client.sealing import read_chat_request


@define(eq=False)
class Proxy(Resource):
    """Every path of the local endpoint.

    :param authorization: for the gateway; None passes on what each program sends, so that its ``api_key`` is the token.
    :param recorded: told of every complete exchange.
    :param say: takes a line for people when something fails.
    """

    isLeaf = True

    gateway: Gateway
    authorization: str | None
    recorded: Callable[[ExchangeRecord], None]
    say: Callable[[str], None]

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def render(self, request: LocalRequest) -> int:
        """Answer a request, at once or later."""
        match request.method, request.path:
            case _ if not request.is_local():
                self._refuse(request, 403, "forbidden", "This endpoint is for programs on this machine, not for pages.")
            case b"POST", b"/v1/chat/completions":
                self._answer(request, self._chat)
            case b"GET", b"/v1/models":
                self._answer(request, self._models)
            case _, b"/v1/chat/completions" | b"/v1/models":
                request.setHeader(b"Allow", b"GET" if request.path.endswith(b"models") else b"POST")
                self._refuse(request, 405, "method_not_allowed", "This path does not take this method.")
            case _:
                text = "There is nothing at this path; see POST /v1/chat/completions and GET /v1/models."
                self._refuse(request, 404, "not_found", text)
        return NOT_DONE_YET

    def _refuse(self, request: LocalRequest, status: int, code: str, message: str) -> None:
        request.refuse(ClientError(code, message, status=status))

    def _answer(self, request: LocalRequest, route: Callable[[LocalRequest], Coroutine[Any, Any, None]]) -> None:
        answering = Deferred.fromCoroutine(route(request))
        gone: list[Failure] = []

        def left(reason: Failure) -> None:
            gone.append(reason)
            answering.cancel()

        def failed(failure: Failure) -> None:
            error = failure.value
            if gone:
                return
            if not isinstance(error, ClientError):
                # the text of an exception that nobody foresaw may hold anything
                where = failure.frames[-1] if failure.frames else ("", "", 0)
                self.say(f"failed unexpectedly: {type(error).__name__} at {where[1]}:{where[2]}")
                error = ClientError("internal_error", "The local proxy failed on this request.", status=500)
            self.tell(error)
            request.refuse(error)

        request.notifyFinish().addErrback(left)
        answering.addErrback(failed)

    def tell(self, error: ClientError) -> None:
        """Say what went wrong with a request."""
        self.say(f"{error.code}: {error.message}")

    def _authorization(self, request: LocalRequest) -> str | None:
        return self.authorization or request.getHeader("Authorization")

    async def _models(self, request: LocalRequest) -> None:
        request.answer(200, await self.gateway.models(self._authorization(request)))

    async def _chat(self, request: LocalRequest) -> None:
        in_clear = self.gateway.options.in_clear
        chat = read_chat_request(request.body(), in_clear)
        answer = await self.gateway.ask(chat, self._authorization(request))
        if chat.stream:
            StreamRelay(self, request, answer).start()
            return
        body, record = await read_answer(answer, self.gateway.reactor, in_clear)
        self.recorded(record)
        request.answer(200, body, answer.headers)


@implementer(IPushProducer)
@define(eq=False)
class StreamRelay:
    """Passes a stream on as it is opened.

    Flow control: the program's connection is the consumer and this its push producer. When the program reads more
    slowly than the gateway writes, the connection's buffer passes its limit and calls `pauseProducing`, the gateway's
    connection is not read any more and TCP's window closes. Nothing is queued in between.

    The head waits for the first opened event, so that whatever fails before it is an ordinary error answer. The
    ``[DONE]`` waits for the end of the gateway's body, so that a program has it only for an answer that was whole.
    """

    _proxy: Proxy
    _request: LocalRequest
    _answer: SealedAnswer
    _stream: AnswerStream = field(init=False)

    def start(self) -> None:
        """Begin to read; the request is answered and finished from here."""
        gateway = self._proxy.gateway
        self._stream = AnswerStream(
            self._answer, gateway.options.in_clear, gateway.reactor, self._opened, self._ended, self._failed
        )
        self._request.registerProducer(self, True)
        self._answer.response.deliverBody(self._stream)

    def pauseProducing(self) -> None:
        self._stream.pause()

    def resumeProducing(self) -> None:
        self._stream.resume()

    def stopProducing(self) -> None:
        """The program has left."""
        self._stream.abort()

    def _opened(self, events: bytes) -> None:
        request = self._request
        if not request.startedWriting:
            request.head(200, b"text/event-stream; charset=utf-8", self._answer.headers)
            request.setHeader(b"X-Accel-Buffering", b"no")
        request.write(events)

    def _ended(self, record: ExchangeRecord) -> None:
        self._proxy.recorded(record)
        self._request.unregisterProducer()
        self._request.write(DONE)
        self._request.finish()

    def _failed(self, error: ClientError) -> None:
        request = self._request
        self._proxy.tell(error)
        request.unregisterProducer()
        if request.startedWriting:
            request.write(b"data: " + error.body() + b"\n\n")
            request.cut()
        else:
            request.refuse(error)
