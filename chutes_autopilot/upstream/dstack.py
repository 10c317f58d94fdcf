"""The dstack guest agent: whatever a confidential VM can say of itself, and keys that only this application gets.

It speaks HTTP/1.1 with JSON bodies, usually over a Unix socket that dstack mounts into the container.
"""

import os.path
import re
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import attrs
import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from chutes_autopilot.upstream.fetch import FetchError, _BoundedBody

SOCKETS = (
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
)
"""Where the agent listens, in the order of dstack's own SDK."""

REPORT_DATA_BYTES = 64
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_QUOTES = 4
"""How many quotes are made at once; making one holds up the whole machine for some milliseconds."""

_HEX = re.compile("([0-9a-fA-F]{2})+")

DstackReason = Literal["absent", "network", "timeout", "status", "too_large", "invalid"]


class DstackError(Exception):
    """The agent gave no usable answer; the text is always the same, because an answer may hold a key.

    :param reason: for logs.
    """

    def __init__(self, reason: DstackReason) -> None:
        super().__init__("the dstack guest agent gave no usable answer")
        self.reason: DstackReason = reason


@attrs.frozen
class AgentQuote:
    """A quote as the agent made it; nothing of it has been checked here.

    :param quote: hex.
    :param event_log: JSON text.
    :param vm_config: any JSON value, as it came.
    """

    quote: str
    event_log: str | None
    vm_config: Any


def find_agent(endpoint: str | None, exists: Callable[[str], bool] = os.path.exists) -> str | None:
    """Where the agent is: what the operator says (a URL or the path of a socket), else the first socket there is.

    :param endpoint: DSTACK_SIMULATOR_ENDPOINT.
    """
    return endpoint or next(filter(exists, SOCKETS), None)


class DstackAgent:
    """Asks the agent. It is looked for anew each time, as it may come up later than this service.

    Every method gives a Deferred that fails with DstackError, and may be cancelled.

    :param reactor: connects, and tells the time.
    :param endpoint: DSTACK_SIMULATOR_ENDPOINT: a URL or the path of a socket; None: the first of SOCKETS there is.
    :param timeout: seconds for one answer, from connecting to its last byte.
    :param max_quotes: how many quotes are made at once, at most MAX_QUOTES.
    """

    def __init__(self, reactor: Any, endpoint: str | None, timeout: float, max_quotes: int = MAX_QUOTES) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._timeout = timeout
        self._quotes = DeferredSemaphore(max_quotes)

    @property
    def present(self) -> bool:
        """Whether there is anything to ask."""
        return find_agent(self._endpoint) is not None

    def get_quote(self, report_data: bytes) -> Deferred[AgentQuote]:
        """A quote that binds ``report_data`` (64 bytes); waits while so many are being made as may be."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError("report_data must be 64 bytes")
        return Deferred.fromCoroutine(self._get_quote(report_data))

    def info(self) -> Deferred[dict[str, Any]]:
        """What the agent says of the application and the machine: ``app_id``, ``tcb_info``, ``compose_hash``..."""
        return self._ask("Info", {})

    def get_key(self, path: str) -> Deferred[bytes]:
        """The 32 bytes that belong to this application and ``path``, on every machine and after every restart.

        Always asked for as secp256k1: agents before dstack OS 0.5.7 know nothing else.
        """
        return Deferred.fromCoroutine(self._get_key(path))

    async def _get_quote(self, report_data: bytes) -> AgentQuote:
        await self._quotes.acquire()
        try:
            answer = await self._ask("GetQuote", {"report_data": report_data.hex()})
        finally:
            self._quotes.release()
        quote, event_log = answer.get("quote"), answer.get("event_log")
        if not (isinstance(quote, str) and _HEX.fullmatch(quote) and isinstance(event_log, str | None)):
            raise DstackError("invalid")
        return AgentQuote(quote.lower(), event_log, answer.get("vm_config"))

    async def _get_key(self, path: str) -> bytes:
        answer = await self._ask("GetKey", {"path": path, "purpose": "e2ee", "algorithm": "secp256k1"})
        key = answer.get("key")
        if not (isinstance(key, str) and len(key) == 64 and _HEX.fullmatch(key)):
            raise DstackError("invalid")
        return bytes.fromhex(key)

    def _ask(self, method: str, arguments: dict[str, str]) -> Deferred[dict[str, Any]]:
        asking = Deferred.fromCoroutine(self._post(method, msgspec.json.encode(arguments)))
        return asking.addTimeout(self._timeout, self._reactor, onTimeoutCancel=_timed_out)

    async def _post(self, method: str, body: bytes) -> dict[str, Any]:
        address = find_agent(self._endpoint)
        if address is None:
            raise DstackError("absent")
        try:
            # below treq: it would follow redirects, unzip without a bound and keep cookies
            agent, base = self._http_agent(address)
            response = await agent.request(
                b"POST",
                f"{base}/{method}".encode(),
                Headers({"Content-Type": ["application/json"], "Accept": ["application/json"]}),
                _JSONBody(body),
            )
            reading = _BoundedBody(MAX_ANSWER_BYTES)
            response.deliverBody(reading)
            if response.code != 200:
                reading.complete.addErrback(lambda _: None)
                reading.complete.cancel()
                raise DstackError("status")
            answer = msgspec.json.decode(await reading.complete)
        except (DstackError, CancelledError):
            raise
        except FetchError:
            raise DstackError("too_large") from None
        except (ValueError, RecursionError):
            raise DstackError("invalid") from None
        except Exception:  # noqa: BLE001 - every failure of the socket, TLS or HTTP is one of the agent
            raise DstackError("network") from None
        if not isinstance(answer, dict):
            raise DstackError("invalid")
        return answer

    def _http_agent(self, address: str) -> tuple[Agent, str]:
        """What can ask, and the URL that the methods' names are appended to."""
        if address.startswith(("http://", "https://")):
            return Agent(self._reactor, connectTimeout=self._timeout), address.rstrip("/")
        return Agent.usingEndpointFactory(self._reactor, _OneSocket(self._reactor, address)), "http://localhost"


def _timed_out(_result: object, _seconds: float) -> NoReturn:
    raise DstackError("timeout")


@implementer(IAgentEndpointFactory)
@attrs.frozen
class _OneSocket:
    """Leads every request to the same Unix socket."""

    _reactor: Any
    _path: str

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return UNIXClientEndpoint(self._reactor, self._path)


@implementer(IBodyProducer)
class _JSONBody:
    """A request body that is at hand and small enough for one write."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...
