"""POST /v1/chutes/chat/completions and GET /v1/chutes/models: Chutes with the operator's key, encrypted on request."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http import BAD_REQUEST, OK

from chutes_autopilot.e2ee.allow_list import SealContext
from chutes_autopilot.e2ee.replay import claim_expiry, claim_name
from chutes_autopilot.e2ee.request import SealedRequest, prepare_request
from chutes_autopilot.e2ee.request_headers import E2EE_HEADERS, E2EEPolicy, SealedExchange, read_e2ee_headers
from chutes_autopilot.e2ee.response import operator_error, plain_headers
from chutes_autopilot.e2ee.server_keys import ServerKeys
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.interfaces import IAttemptObserver, IReplayClaims, IUpstreamAttempt
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.relay.answer_filter import AnswerFilter, PlainAnswer
from chutes_autopilot.relay.call import ChatCall
from chutes_autopilot.relay.chat import ChatRelay
from chutes_autopilot.relay.exchange import OpenUpstream
from chutes_autopilot.relay.sealed_answer import InThread, SealedAnswer, SealingTerms
from chutes_autopilot.upstream.chat import UpstreamRequest
from chutes_autopilot.upstream.deadlines import Deadlines
from chutes_autopilot.upstream.fetch import FetchedAnswer, FetchError
from chutes_autopilot.web.chat import client_of
from chutes_autopilot.web.downstream import RequestDownstream
from chutes_autopilot.web.kept_answers import AskedFor
from chutes_autopilot.web.site import GatewayRequest
from chutes_autopilot.wire.body import ChatBody, read_chat_body
from chutes_autopilot.wire.headers import header_lines

BYTES_AT_ONCE = 65536
"""Larger requests are read and opened in a thread: a hostile megabyte takes some 100 ms."""

FIELDS_AT_ONCE = 8
"""More fields than these are opened in a thread: an ECDSA one takes about half a millisecond."""

_NEW_NONCE = "send a new nonce"
_SHA256 = re.compile(rb"[0-9a-f]{64}")

Authenticate = Callable[[GatewayRequest], bytes]
"""Admits the caller or raises the ApiError to answer with; gives what the caller is known by."""


class AnswerKept(Protocol):
    """Told of each complete 200, so that it can be signed for when somebody asks."""

    def __call__(self, asked: AskedFor, model: str, answer: AnswerFilter, record: RequestRecord) -> None: ...


@attrs.frozen(repr=False)
class OpenedRequest:
    """An encrypted request in clear.

    :param model: as sent.
    :param read: the body as routing sees it, where it was large; None: it is still to be read.
    """

    model: str
    body: bytes
    read: ChatBody | None


@attrs.define(eq=False)
class Encryption:
    """What the route needs to open requests and seal answers.

    :param keys: those in force; may raise an ApiError.
    :param not_before: Unix time before which no request can be told from a replay, None where all can.
    :param unix_time: seconds.
    """

    keys: Callable[[], ServerKeys]
    policy: E2EEPolicy
    terms: SealingTerms
    claims: IReplayClaims
    not_before: int | None
    unix_time: Callable[[], float]
    deadlines: Deadlines
    in_thread: InThread

    def read(self, request: GatewayRequest) -> SealedExchange | None:
        """What the request's headers ask for; None: nothing of it is encrypted."""
        values = {
            name: [value.decode("latin-1") for value in request.requestHeaders.getRawHeaders(name.encode(), ())]
            for name in E2EE_HEADERS
        }
        if not self.policy.require and not any(values.values()):
            return None  # before the keys are asked for: plain requests need none
        return read_e2ee_headers(values, self.keys(), self.policy, self.unix_time())

    async def open(self, body: bytes, exchange: SealedExchange) -> OpenedRequest:
        """The request in clear; its nonce is claimed by then."""
        policy, large = self.policy, len(body) > BYTES_AT_ONCE
        begin = partial(_begun, body, exchange, policy, self.unix_time(), self.not_before)
        sealed = await self._in_thread(begin) if large else begin()
        if exchange.nonce is not None and exchange.timestamp is not None:
            name = claim_name(exchange.server_key.public, exchange.nonce)
            await self.claims.claim(name, claim_expiry(exchange.timestamp, policy.window, policy.skew))
        try:
            finish = partial(_finished, sealed, large)
            return await self._in_thread(finish) if large or sealed.fields > FIELDS_AT_ONCE else finish()
        except ApiError as error:
            _ask_for_a_new_nonce(error, exchange)
            raise

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Do the work in a thread, or, should the client leave before its turn comes, not at all.

        What waits in a pool cannot be taken back, but its body can.
        """
        waiting = [work]
        try:
            return await self.in_thread(lambda: waiting.pop()() if waiting else None)
        except CancelledError:
            waiting.clear()
            raise

    def answer(self, observer: IAttemptObserver, exchange: SealedExchange, model: str) -> SealedAnswer:
        """Seals one attempt's answer."""
        context = SealContext(exchange, model, self.policy.uncovered)
        return SealedAnswer(observer, context, self.policy, self.terms, self.deadlines, self.in_thread)


@attrs.define(eq=False)
class ChutesRoute:
    """Answers those who may spend the operator's key.

    :param open_upstream: makes the attempts, over TLS or sealed to the instance.
    :param upstream_fields: the header lines of every upstream request but Accept, the operator's key among them.
    :param fetch_models: asks the platform for its models with the operator's key.
    :param kept: told of each complete answer.
    :param trust_request_hash: take X-Request-Hash for the hash of the request that is signed.
    """

    authenticate: Authenticate
    relay: ChatRelay
    encryption: Encryption
    open_upstream: OpenUpstream
    upstream_fields: bytes
    fetch_models: Callable[[], Awaitable[FetchedAnswer]]
    kept: AnswerKept
    trust_request_hash: bool

    def chat(self, request: GatewayRequest) -> Deferred[None]:
        """Relay a chat request; fires when it is answered, fails with the ApiError to answer with."""
        return Deferred.fromCoroutine(self._chat(request))

    def models(self, request: GatewayRequest) -> Deferred[None]:
        """The platform's list of models."""
        return Deferred.fromCoroutine(self._models(request))

    async def _models(self, request: GatewayRequest) -> None:
        self.authenticate(request)
        try:
            answer = await self.fetch_models()
        except FetchError as fault:
            code = "upstream_header_timeout" if fault.reason == "timeout" else "upstream_connect_error"
            raise e2ee_error(code, "Chutes did not give its list of models; try again.") from None
        error = operator_error(answer.status)
        if error is not None:
            raise error
        if answer.status != OK and answer.status < BAD_REQUEST:  # a redirect leads nobody to the list
            raise e2ee_error("upstream_connect_error", "Chutes did not give its list of models; try again.")
        request.answer(answer.status, answer.body, b"application/json", plain_headers())

    async def _chat(self, request: GatewayRequest) -> None:
        body = request.take_body()
        try:
            caller = self.authenticate(request)
            self.relay.check_room()  # before keys and nonces are at work for nothing
            _check_coding(request)
            exchange = self.encryption.read(request)
            opened = None if exchange is None else await self.encryption.open(body, exchange)
        except ApiError as error:
            self.relay.refused(request.request_id, len(body), error)
            raise
        except CancelledError:
            self.relay.abandoned(request.request_id, len(body))
            raise
        asked = AskedFor(caller, self._request_hash(request, body), exchange)
        call = ChatCall(
            b"POST",
            b"/v1/chat/completions",
            self.upstream_fields,
            body if opened is None else opened.body,
            request.request_id,
            client_of(request),
            continuable=exchange is None,
        )
        sealed_model, read = (None, []) if opened is None else (opened.model, [opened.read])
        del body, opened  # call and exchange alone hold the body, which is dropped before the answer ends
        try:
            await self._relay(request, asked, sealed_model, call, read)
        except ApiError as error:
            if exchange is not None:
                _ask_for_a_new_nonce(error, exchange)
            raise

    async def _relay(
        self,
        request: GatewayRequest,
        asked: AskedFor,
        sealed_model: str | None,
        call: ChatCall,
        read: list[ChatBody | None],
    ) -> None:
        """Relay the call.

        :param read: its body, where it was read; taken out, for this waits until all is answered.
        """
        exchange = asked.exchange
        answers: list[AnswerFilter] = []

        def open_upstream(
            model: str, upstream: UpstreamRequest, timeout: float, observer: IAttemptObserver
        ) -> IUpstreamAttempt:
            answer: AnswerFilter
            if exchange is None or sealed_model is None:
                answer = PlainAnswer(observer)
            else:
                answer = self.encryption.answer(observer, exchange, sealed_model)
            answer.inside = self.open_upstream(model, upstream, timeout, answer)
            answers.append(answer)
            return answer

        def ended(record: RequestRecord, error: ApiError | None) -> None:
            if error is not None:
                done.errback(error)
            elif record.outcome == "complete":
                if record.status == 200 and record.continued_by is None:  # nobody signs for two models as one
                    self.kept(asked, opened.model, answers[-1], record)
                done.callback(None)

        opened = self.relay.open(call, RequestDownstream(request), ended, open_upstream, read.pop() if read else None)
        done: Deferred[Any] = Deferred(lambda _: opened.client_gone())
        opened.start()
        await done

    def _request_hash(self, request: GatewayRequest, body: bytes) -> str:
        said = request.getHeader(b"x-request-hash") or b""
        if self.trust_request_hash and _SHA256.fullmatch(said):
            return said.decode()
        return hashlib.sha256(body).hexdigest()


def _begun(
    body: bytes, exchange: SealedExchange, policy: E2EEPolicy, now: float, not_before: int | None
) -> SealedRequest:
    """What must have been done before a nonce is claimed."""
    sealed = prepare_request(body, exchange, policy, now, not_before=not_before)
    sealed.first()
    return sealed


def _finished(sealed: SealedRequest, large: bool) -> OpenedRequest:
    clear = sealed.rest()
    return OpenedRequest(sealed.model, clear, read_chat_body(clear) if large else None)


def _ask_for_a_new_nonce(error: ApiError, exchange: SealedExchange) -> None:
    """Say what to do about an error that came after the claim, which is never given back."""
    if exchange.nonce is not None and _NEW_NONCE not in error.message:
        error.message += f" To try again, {_NEW_NONCE}."


def upstream_fields(api_key: bytes, user_agent: bytes) -> bytes:
    """The header lines of a request with the operator's key: ours alone, nothing of the client's."""
    return header_lines(
        [
            (b"Content-Type", b"application/json"),
            (b"Accept", b"application/json, text/event-stream"),
            (b"Accept-Encoding", b"identity"),
            (b"Authorization", b"Bearer " + api_key),
            (b"User-Agent", user_agent),
        ]
    )


def _check_coding(request: GatewayRequest) -> None:
    codings = request.requestHeaders.getRawHeaders(b"content-encoding", ())
    if any(coding.strip().lower() != b"identity" for coding in codings):
        raise e2ee_error("unsupported_content_encoding", "The request body must not have a Content-Encoding.")
