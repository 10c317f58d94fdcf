"""A real Redis for the tests that need one."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pytest_twisted import blockon
from redis_process import UNLIKELY, RedisLog, RedisProcess
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.logger import globalLogPublisher

from chutes_autopilot.settings.redis_url import RedisServer
from chutes_autopilot.storage.redis_connection import RedisConnection


@pytest.fixture
def redis_log() -> Iterator[RedisLog]:
    from twisted.internet import reactor

    log = RedisLog(reactor)
    globalLogPublisher.addObserver(log)
    yield log
    globalLogPublisher.removeObserver(log)


@pytest.fixture
def make_redis() -> Iterator[Callable[..., RedisProcess]]:
    """Makes Redis processes, not yet started."""
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    made = []
    with TemporaryDirectory(prefix="redis-") as directory:  # a short path: those of Unix sockets have a limit

        def make(*options: str) -> RedisProcess:
            home = Path(directory) / str(len(made))
            home.mkdir()
            made.append(RedisProcess(home, *options))
            return made[-1]

        yield make
        for process in made:
            process.kill()


@pytest.fixture
def redis(make_redis: Callable[..., RedisProcess]) -> RedisProcess:
    """A started Redis that lets everybody in."""
    process = make_redis()
    process.start()
    return process


@pytest.fixture
def connect() -> Iterator[Callable[..., RedisConnection]]:
    """Starts connections, by default over the Unix socket of a Redis process."""
    from twisted.internet import reactor

    made = []

    def connect(
        process: RedisProcess,
        *,
        endpoint: Any = None,
        timeout: float = UNLIKELY,
        login_timeout: float = UNLIKELY,
        changed: Callable[[list[bytes] | None], object] | None = None,
        **login: Any,
    ) -> RedisConnection:
        where = endpoint or UNIXClientEndpoint(reactor, process.path)
        server = RedisServer("localhost", **login)
        connection = RedisConnection(reactor, where, server, timeout, login_timeout, changed)
        connection.startService()
        made.append(connection)
        return connection

    yield connect
    for connection in made:
        blockon(maybeDeferred(connection.stopService))


@pytest.fixture
def free_port() -> int:
    """A port of loopback that nobody listens on; redis-server cannot be asked to take one by itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
