"""One gateway as its client sees it: a key that was checked, sealed requests, and answers still to be opened."""

from collections.abc import Callable, Set
from hashlib import sha256
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThreadPool
from twisted.web.iweb import IAgent, IResponse

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee_client.errors import AnswerRefused, GatewayFailed, GatewayRefused
from chutes_autopilot.e2ee_client.exchange import AnswerFields, Exchange, Version
from chutes_autopilot.e2ee_client.opening import require_applied
from chutes_autopilot.e2ee_client.proof import ExchangeRecord
from chutes_autopilot.e2ee_client.report import CheckedReport, TrustPolicy, check_report, new_report_nonce
from chutes_autopilot.e2ee_client.sealing import ChatRequest
from chutes_autopilot.e2ee_client.transport import abandon, header, read_whole, send, within

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
"""A report with its event log, a list of models, a signature, a receipt, an error."""

DOCUMENT_SECONDS = 60.0
"""For a whole document: making a quote takes seconds, and several may wait for each other."""

HEAD_SECONDS = 600.0
"""Until the head of an answer, which comes with its first token."""

KEY_SECONDS = 3600.0
"""After this time the report is fetched again, so that the end of a key's life is heard of before it comes."""

KEY_MARGIN = 60.0
"""A key that is to end within these seconds is not used any more."""

PASSED_HEADERS = ("Retry-After", "X-Request-Id", "WWW-Authenticate")
PASSED_PREFIXES = ("x-chutes-autopilot-", "x-e2ee-")
"""Headers of the gateway's answers that mean something to its user; a Location or a cookie is none of them."""

Authorization = str | None
"""The value of the Authorization header for the gateway."""


@frozen
class GatewayOptions:
    """How to speak to a gateway.

    :param base_url: of the encrypted route, ending in ``/v1/chutes``.
    :param in_clear: members of requests and answers that may go in clear.
    """

    base_url: str
    algo: Algo = "ed25519"
    version: Version = 2
    policy: TrustPolicy = field(factory=TrustPolicy)
    in_clear: Set[str] = frozenset()

    def url(self, path: str) -> str:
        """Of the encrypted route: ``chat/completions`` or ``models``."""
        return f"{self.base_url}/{path}"

    def document_url(self, path: str) -> str:
        """Of what stands beside the route under ``/v1``: report, signatures, receipts."""
        return f"{self.base_url.removesuffix('/chutes')}/{path}"


@frozen
class SealedAnswer:
    """An answer whose head says that it is encrypted; its body waits to be read."""

    response: IResponse
    fields: AnswerFields
    headers: tuple[tuple[bytes, bytes], ...]
    _key: CheckedReport
    _model: str
    _request_sha256: str

    def record(self, answer_id: str, response_sha256: str) -> ExchangeRecord:
        """What to check the gateway's signature with."""
        return ExchangeRecord(
            answer_id, self._model, self._key.algo, self._key.address, self._request_sha256, response_sha256
        )


@define(eq=False)
class Gateway:
    """Seals requests to a gateway whose key was checked.

    :param reactor: for threads and time limits.
    :param now: Unix time.
    :param checked: told of each report that was fetched and found good.
    """

    reactor: Any
    agent: IAgent
    options: GatewayOptions
    now: Callable[[], float]
    checked: Callable[[CheckedReport], None]
    _key: CheckedReport | None = field(default=None, init=False)
    _fetched_at: float = field(default=0.0, init=False)
    _fetching: DeferredLock = field(factory=DeferredLock, init=False)

    async def key(self, authorization: Authorization, refused: CheckedReport | None = None) -> CheckedReport:
        """The key to seal to, from a report that may have been fetched before.

        :param refused: a key that the gateway does not take any more.
        """
        await self._fetching.acquire()
        try:
            key = self._key
            if key is None or key is refused or self._ends_soon(key):
                key = await self.fetch_key(authorization)
            return key
        finally:
            self._fetching.release()

    async def fetch_key(self, authorization: Authorization) -> CheckedReport:
        """Fetch the report now and check it; raises ReportRefused, GatewayRefused or GatewayFailed."""
        nonce, options = new_report_nonce(), self.options
        query = f"attestation/report?signing_algo={options.algo}&nonce={nonce}"
        report = await self.document(query, authorization)
        self._key = None
        key = check_report(report, options.algo, nonce, options.policy, self.now())
        self._key, self._fetched_at = key, self.now()
        self.checked(key)
        return key

    async def ask(self, request: ChatRequest, authorization: Authorization) -> SealedAnswer:
        """Send a chat request sealed.

        Nothing is ever repeated but a request whose key the gateway does not know, once, after a look at a new report.
        Raises any ClientError.
        """
        key = await self.key(authorization)
        try:
            return await self._try(request, key, authorization)
        except GatewayRefused as refusal:
            if refusal.kind != "e2ee_model_key_mismatch":
                raise
        return await self._try(request, await self.key(authorization, refused=key), authorization)

    async def models(self, authorization: Authorization) -> bytes:
        """The list of models, which is never encrypted."""
        return await self._read(self.options.url("models"), authorization)

    async def document(self, path: str, authorization: Authorization) -> bytes:
        """A signature, receipt or report, with its query; raises GatewayRefused or GatewayFailed."""
        return await self._read(self.options.document_url(path), authorization)

    def _ends_soon(self, key: CheckedReport) -> bool:
        now = self.now()
        ends = key.not_after is not None and key.not_after - KEY_MARGIN <= now
        return ends or not 0 <= now - self._fetched_at < KEY_SECONDS

    async def _try(self, request: ChatRequest, key: CheckedReport, authorization: Authorization) -> SealedAnswer:
        exchange = Exchange.new(key.algo, self.options.version, self.now())
        # hundreds of fields, or one long one, would hold up the streams of other requests
        sealing = deferToThreadPool(self.reactor, self.reactor.getThreadPool(), request.seal, key.public, exchange)
        body: bytes = await sealing
        headers = [
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream" if request.stream else "application/json"),
            *exchange.headers(key.wire_hex),
            *_authorized(authorization),
        ]
        asking = Deferred.fromCoroutine(send(self.agent, b"POST", self.options.url("chat/completions"), headers, body))
        response = await within(self.reactor, HEAD_SECONDS, asking)
        if response.code != 200:
            raise await self._refusal(response)
        try:
            require_applied(header(response, "X-E2EE-Applied"))
            _require_type(response, "text/event-stream" if request.stream else "application/json")
        except AnswerRefused:
            abandon(response)
            raise
        return SealedAnswer(
            response, exchange.opener(), _passed(response), key, request.model, sha256(body).hexdigest()
        )

    async def _read(self, url: str, authorization: Authorization) -> bytes:
        headers = [("Accept", "application/json"), *_authorized(authorization)]
        asking = Deferred.fromCoroutine(send(self.agent, b"GET", url, headers))
        response = await within(self.reactor, DOCUMENT_SECONDS, asking)
        if response.code != 200:
            raise await self._refusal(response)
        body: bytes = await within(self.reactor, DOCUMENT_SECONDS, read_whole(response, MAX_DOCUMENT_BYTES))
        return body

    async def _refusal(self, response: IResponse) -> GatewayRefused:
        """The error answer; anything that is neither an error nor a plain 200 is not passed on.

        A redirect least of all: a program's HTTP client would follow it with the request in clear.
        """
        if not 400 <= response.code <= 599:
            abandon(response)
            text = f"The gateway answered with status {response.code}, which is neither an answer nor an error."
            raise GatewayFailed("gateway_unexpected_status", text)
        body = await within(self.reactor, DOCUMENT_SECONDS, read_whole(response, MAX_DOCUMENT_BYTES))
        return GatewayRefused(response.code, _passed(response), body)


def _authorized(authorization: Authorization) -> tuple[tuple[str, str], ...]:
    return () if authorization is None else (("Authorization", authorization),)


def _require_type(response: IResponse, expected: str) -> None:
    sent = (header(response, "Content-Type") or "").partition(";")[0].strip().lower()
    if sent != expected:
        raise AnswerRefused("e2ee_answer_malformed", f"The gateway's answer is not of the type {expected}.")


def _passed(response: IResponse) -> tuple[tuple[bytes, bytes], ...]:
    wanted = {name.lower() for name in PASSED_HEADERS}
    return tuple(
        (name, value)
        for name, values in response.headers.getAllRawHeaders()
        for value in values
        if name.decode("latin-1").lower() in wanted or name.decode("latin-1").lower().startswith(PASSED_PREFIXES)
    )
