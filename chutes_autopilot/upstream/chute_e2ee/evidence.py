"""Evidence and measurements, asked of the API in the background: an answer may take minutes and have megabytes.

Nothing here judges what comes; that is e2ee.evidence and control.attestation. Nothing here may be called for a request.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from chutes_autopilot.e2ee.evidence import EvidenceError, InstanceEvidence, read_evidence
from chutes_autopilot.upstream.chute_e2ee.budget import ALONE, DiscoveryBudget, Turn
from chutes_autopilot.upstream.fetch import FetchError, fetch_answer

InThread = Callable[..., Deferred[Any]]
"""Calls a function with arguments in a thread pool and hands over its result or failure."""

CALLS_PER_MINUTE = 60
"""The API's limit for evidence, which all its users share."""

MAX_EVIDENCE_BYTES = 32 * 1024 * 1024
MAX_MEASUREMENTS_BYTES = 4 * 1024 * 1024

EVIDENCE_TIMEOUT = 300.0
"""Seconds: a first answer for a large chute was seen to take over two minutes."""


class EvidenceSource:
    """Asks the API with the operator's key.

    :param base_url: CHUTES_API_BASE_URL.
    :param clock: counts the minutes, so it must tell Unix time.
    :param in_thread: where megabytes of JSON are taken apart.
    :param random: evenly distributed in [0, 1).
    :param timeout: seconds for one whole answer.
    :param calls_per_minute: of all processes that take turns.
    """

    def __init__(
        self,
        http_client: HTTPClient,
        base_url: str,
        api_key: str,
        clock: IReactorTime,
        in_thread: InThread,
        random: Callable[[], float],
        timeout: float = EVIDENCE_TIMEOUT,
        calls_per_minute: int = CALLS_PER_MINUTE,
        turn: Turn = ALONE,
    ) -> None:
        self._http_client = http_client
        self._base_url = base_url.rstrip("/")
        self._authorization = (("Authorization", f"Bearer {api_key}"),)
        self._clock = clock
        self._in_thread = in_thread
        self._timeout = timeout
        self._budget = DiscoveryBudget(calls_per_minute, random, turn)
        self._queue = DeferredLock()

    async def evidence(self, chute_id: str, nonce: str) -> dict[str, InstanceEvidence]:
        """The evidence of a chute's instances, by instance id; more of them than discovery knows, in any order.

        :param nonce: 64 hexadecimal characters, lower case, used for this call only.
        :raises FetchError: there is none; it says nothing about any instance.
        """
        body = await self._get(f"/chutes/{quote(chute_id, safe='')}/evidence?nonce={nonce}", MAX_EVIDENCE_BYTES)
        try:
            found: dict[str, InstanceEvidence] = await self._in_thread(read_evidence, body)
        except EvidenceError as error:
            raise FetchError("invalid", str(error)) from None
        return found

    async def measurements(self) -> bytes:
        """The list of measurements as the API asserts it, not yet parsed; raises FetchError."""
        return await self._get("/servers/tee/measurements", MAX_MEASUREMENTS_BYTES)

    async def _get(self, path: str, max_bytes: int) -> bytes:
        await self._spend()
        answer = await fetch_answer(
            self._http_client,
            self._base_url + path,
            clock=self._clock,
            timeout=self._timeout,
            max_bytes=max_bytes,
            headers=self._authorization,
        )
        if answer.status == 429:
            self._budget.limited(self._clock.seconds(), answer.retry_after)
        else:
            self._budget.answered()
        if answer.status != 200:
            raise FetchError("status", f"status {answer.status}")
        return answer.body

    async def _spend(self) -> None:
        """Return when one more call may be made; whoever must wait for the next minute comes in turn."""
        async with self._queue:
            while (wait := self._budget.next_at(self._clock.seconds()) - self._clock.seconds()) > 0:
                await deferLater(self._clock, wait)
            self._budget.spend(self._clock.seconds())
