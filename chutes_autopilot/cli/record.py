"""``chutes-autopilot record DIR``: keep the platform's feeds, to try another ranking on them later."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.ssl import platformTrust
from twisted.internet.task import react

from chutes_autopilot.cli.environment import ENV_FILE_HELP, command_parser, settings_from
from chutes_autopilot.control.recording import RecordedFeed, Recorder
from chutes_autopilot.demo.service import SimulatedChutesService, listen_simulator
from chutes_autopilot.demo.simulator import SimulatedChutes
from chutes_autopilot.settings import Settings, SettingsError
from chutes_autopilot.storage.feed_archive import MAX_BODY_BYTES, ArchiveError, FeedArchive, Source
from chutes_autopilot.upstream.agent import control_plane_client
from chutes_autopilot.upstream.certificates import CertificateFile
from chutes_autopilot.upstream.fetch import FetchedAnswer, fetch_answer
from chutes_autopilot.upstream.pool import ConnectionPool, endpoints_for

LEAST_INTERVAL = 5
"""Seconds: as often as a gateway asks by itself; oftener would be rude and bring nothing new."""

DESCRIPTION = """Fetches the catalog (MODELS_URL) and the utilization feed (UTILIZATION_URL) again and again and keeps
each answer that is unlike the one before as a compressed file in DIR, without private chutes. No key is used. It may be
ended and started again at any time; chutes-autopilot replay DIR reads what it kept."""


def record(arguments: Sequence[str], reactor: Any, environ: Mapping[str, str] = os.environ) -> None:
    """Record until a signal, or as long as the options say; exit code 1 where DIR or the settings cannot be used."""
    parser = command_parser("record", DESCRIPTION)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument(
        "--interval", type=_interval, default=30, metavar="SECONDS", help="between two fetches (default: %(default)s)"
    )
    parser.add_argument(
        "--max-mb", type=_whole, default=256, metavar="MB", help="size of DIR, oldest go first (default: %(default)s)"
    )
    parser.add_argument("--count", type=_whole, metavar="N", help="end after N answers of the utilization feed")
    parser.add_argument("--env-file", metavar="FILE", help=ENV_FILE_HELP)
    parser.add_argument("--demo", action="store_true", help="record the demo mode's simulated feeds")
    options = parser.parse_args(arguments)
    try:
        settings = settings_from(environ, options.env_file)
        archive = FeedArchive(options.directory, options.max_mb * 1024 * 1024)
        archive.open()
    except SettingsError as error:
        _refuse("\n  ".join(["these settings are not valid:", *error.faults]))
    except ArchiveError as error:
        _refuse(str(error))

    def start(reactor: Any) -> Deferred[None]:
        ended: Deferred[None] = Deferred()
        running = Deferred.fromCoroutine(_record(options, settings, archive, reactor, ended))

        def end() -> Deferred[None]:
            running.cancel()
            return ended

        reactor.addSystemEventTrigger("before", "shutdown", end)
        return running

    react(start, (), reactor)


async def _record(
    options: argparse.Namespace, settings: Settings, archive: FeedArchive, reactor: Any, ended: Deferred[None]
) -> None:
    """Record to the end, and fire ``ended``: a signal's shutdown waits for it."""
    urls: dict[Source, str] = {"catalog": settings.models_url, "utilization": settings.utilization_url}
    simulator = None
    if options.demo:
        chutes = SimulatedChutes(reactor)
        simulator = SimulatedChutesService(chutes, listen_simulator(reactor, chutes))
        urls = {"catalog": f"{simulator.base_url}/v1/models", "utilization": f"{simulator.base_url}/chutes/utilization"}
    trust_root = CertificateFile(settings.ssl_cert_file) if settings.ssl_cert_file else platformTrust()
    pool = ConnectionPool(reactor, endpoints_for(reactor, trust_root), settings.upstream_connect_timeout)
    http_client = control_plane_client(pool)

    def fetch(url: str) -> Callable[[], Coroutine[Deferred[Any], Any, FetchedAnswer]]:
        timeout = settings.control_plane_timeout
        return lambda: fetch_answer(http_client, url, clock=reactor, timeout=timeout, max_bytes=MAX_BODY_BYTES)

    feeds = (
        RecordedFeed("catalog", fetch(urls["catalog"]), max(options.interval, settings.models_refresh)),
        RecordedFeed("utilization", fetch(urls["utilization"]), options.interval),
    )
    recorder = Recorder(archive, feeds, reactor, time.time, lambda text: print(text, flush=True))
    code = 0
    try:
        await recorder.run(options.count)
    except CancelledError:
        pass  # by a signal
    except ArchiveError as error:
        print(f"chutes-autopilot record: {error}", file=sys.stderr)
        code = 1
    finally:
        archive.close()
        await pool.close()
        if simulator is not None:
            await simulator.stopService()
    size = sum(kept.size for kept in archive.kept)
    print(f"{recorder.fetched} answers; {len(archive.kept)} snapshots, {size / 1024:.0f} KiB in {options.directory}")
    ended.callback(None)
    raise SystemExit(code)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**9):
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def _interval(text: str) -> int:
    seconds = _whole(text)
    if seconds < LEAST_INTERVAL:
        raise argparse.ArgumentTypeError(f"must be at least {LEAST_INTERVAL} seconds")
    return seconds


def _refuse(message: str) -> NoReturn:
    print(f"chutes-autopilot record: {message}", file=sys.stderr)
    raise SystemExit(1)
