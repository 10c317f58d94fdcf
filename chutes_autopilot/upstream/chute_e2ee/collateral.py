"""Collateral for level ``quote+tcb``: fetched from a provisioning cache (PCCS) in the background and kept on disk.

It is the same for a whole family of platforms and valid for about a month, so a restart or a cache that is down for a
while costs nothing. What is kept is checked like what is fetched: the directory need not be trusted.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from attrs import define, field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from chutes_autopilot.e2ee.collateral import (
    MAX_COLLATERAL_BYTES,
    Answer,
    Collateral,
    CollateralError,
    Platform,
    join_collateral,
    read_collateral,
)
from chutes_autopilot.e2ee.quote_chain import INTEL_ROOT_SPKI_SHA256
from chutes_autopilot.upstream.chute_e2ee.evidence import InThread
from chutes_autopilot.upstream.fetch import FetchError, fetch_json_bytes

REFRESH_SECONDS = 86400.0
"""How old collateral may be before it is fetched again: news of a revocation are known a day later at the latest."""

RETRY_SECONDS = 300.0
"""How long nothing is asked after a failure."""

MAX_PLATFORMS = 64

INTEL_SERVICE = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
"""Intel's own service has the root's revocation list elsewhere; a PCCS serves all."""


@frozen
class _Kept:
    """:param fetched_at: Unix time."""

    collateral: Collateral
    fetched_at: float


@define(eq=False)
class _HeadKept:
    """An HTTP client for fetch_json_bytes, which hands over no more of an answer than its body."""

    _http_client: HTTPClient
    headers: Headers = field(factory=Headers, init=False)

    async def get(self, url: str, **options: Any) -> Any:
        answer = await self._http_client.get(url, **options)
        self.headers = answer.headers
        return answer


class CollateralSource:
    """Collateral per family of platforms, each fetched at most once a day.

    :param url: CHUTES_PCCS_URL, with or without ``/sgx/certification/v4``.
    :param directory: where it is kept; made if it is not there.
    :param now: tells Unix time, by which collateral is valid.
    :param in_thread: where files are read and signatures checked.
    :param timeout: seconds for each of the four answers.
    """

    _log = Logger()

    def __init__(
        self,
        http_client: HTTPClient,
        url: str,
        directory: Path,
        clock: IReactorTime,
        now: Callable[[], float],
        in_thread: InThread,
        timeout: float = 30.0,
        root_spki_sha256: bytes = INTEL_ROOT_SPKI_SHA256,
    ) -> None:
        base = url.rstrip("/")
        for tee in ("sgx", "tdx"):
            base = base.removesuffix(f"/{tee}/certification/v4")
        self._http_client = http_client
        self._base = base
        self._directory = directory
        self._clock = clock
        self._now = now
        self._in_thread = in_thread
        self._timeout = timeout
        self._root = root_spki_sha256
        self._kept: dict[Platform, _Kept] = {}
        self._failed_at: dict[Platform, float] = {}
        self._turn = DeferredLock()

    async def collateral(self, platform: Platform) -> Collateral:
        """Collateral that is valid now: what is kept while it is young enough, or as long as no newer can be had.

        :raises FetchError: there is none, so nothing can be said about any quote.
        """
        async with self._turn:
            now = self._now()
            kept = self._kept.get(platform) or await self._in_thread(self._load, platform, now)
            if kept is not None and not kept.collateral.valid(now):
                kept = None
            if kept is None or now - kept.fetched_at >= REFRESH_SECONDS:
                kept = await self._renewed(platform, kept, now)
            self._kept[platform] = kept
            while len(self._kept) > MAX_PLATFORMS:
                del self._kept[next(iter(self._kept))]
            return kept.collateral

    async def _renewed(self, platform: Platform, kept: _Kept | None, now: float) -> _Kept:
        if now - self._failed_at.get(platform, -RETRY_SECONDS) < RETRY_SECONDS:
            if kept is not None:
                return kept
            raise FetchError("network", "collateral could not be fetched a moment ago")
        try:
            text = await self._fetch(platform)
            collateral = await self._in_thread(self._save, platform, text, now)
        except (FetchError, CollateralError) as error:
            while len(self._failed_at) >= MAX_PLATFORMS:
                del self._failed_at[next(iter(self._failed_at))]
            self._failed_at[platform] = now
            if kept is not None:
                return kept
            if isinstance(error, FetchError):
                raise
            raise FetchError("invalid", f"collateral {error}") from None
        self._failed_at.pop(platform, None)
        return _Kept(collateral, now)

    async def _fetch(self, platform: Platform) -> bytes:
        pck_crl = await self._get(
            f"{self._base}/sgx/certification/v4/pckcrl?ca={platform.ca}&encoding=der", "SGX-PCK-CRL-Issuer-Chain"
        )
        tcb_info = await self._get(
            f"{self._base}/tdx/certification/v4/tcb?fmspc={platform.fmspc}",
            "TCB-Info-Issuer-Chain",
            "SGX-TCB-Info-Issuer-Chain",
        )
        qe_identity = await self._get(
            f"{self._base}/tdx/certification/v4/qe/identity?update=standard", "SGX-Enclave-Identity-Issuer-Chain"
        )
        intel = self._base == INTEL_SERVICE
        root_crl = await self._get(INTEL_ROOT_CRL if intel else f"{self._base}/sgx/certification/v4/rootcacrl")
        return join_collateral(pck_crl, root_crl.body, tcb_info, qe_identity)

    async def _get(self, url: str, *chain_headers: str) -> Answer:
        """:param chain_headers: where the issuer chain may be; none: there is no chain."""
        client = _HeadKept(self._http_client)
        body = await fetch_json_bytes(
            cast(HTTPClient, client),
            url,
            clock=self._clock,
            timeout=self._timeout,
            max_bytes=MAX_COLLATERAL_BYTES,
        )
        chains = [value for name in chain_headers for value in client.headers.getRawHeaders(name, [])]
        return Answer(body, chains[0] if chains else "")

    def _path(self, platform: Platform) -> Path:
        return self._directory / f"tdx-{platform.fmspc}-{platform.ca}.json"

    def _load(self, platform: Platform, now: float) -> _Kept | None:
        """What the disk has, None where that is nothing usable. Blocks."""
        try:
            with self._path(platform).open("rb") as file:
                text = file.read(MAX_COLLATERAL_BYTES)
                fetched_at = os.fstat(file.fileno()).st_mtime
            collateral = read_collateral(text, now, self._root)
        except (OSError, CollateralError):
            return None
        return _Kept(collateral, min(fetched_at, now)) if collateral.fmspc == platform.fmspc else None

    def _save(self, platform: Platform, text: bytes, now: float) -> Collateral:
        """Check what was fetched and keep it; raises CollateralError. Blocks."""
        collateral = read_collateral(text, now, self._root)
        if collateral.fmspc != platform.fmspc:
            raise CollateralError("of another platform")
        try:
            self._write(self._path(platform), collateral.text.encode(), now)
        except OSError as error:
            # it is good for as long as this process lives
            self._log.warn("collateral is not kept on disk: {error}", error=type(error).__name__)
        return collateral

    def _write(self, path: Path, data: bytes, now: float) -> None:
        """Put a whole file in the place of what was there."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=self._directory, prefix=".collateral-")  # of mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.utime(name, (now, now))
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
