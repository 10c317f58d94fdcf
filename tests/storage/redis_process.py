"""A Redis of the tests' own, and what our connection to it tells the log."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import formatEvent

UNLIKELY = 5.0
"""Seconds to wait for an answer where lateness is not what is tested."""


class RedisProcess:
    """A Redis that keeps nothing, on a Unix socket and where asked for on a port of loopback.

    :param options: further ones of redis-server.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.path = str(directory / "redis.sock")
        self._command = ["redis-server", "--port", "0", "--unixsocket", self.path, "--save", "", *options]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(self._command, cwd=self._directory, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        said = b""
        for line in self._process.stdout:
            said += line
            if b"eady to accept connections" in line:
                return
        raise RuntimeError(said.decode())

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def pause(self) -> None:
        """Let it answer nothing until `resume`, while its connections stay."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


class RedisLog:
    """What the connection told the log, in order."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.lines: list[str] = []
        self._heard = 0
        self._waiting: tuple[str, Deferred[None]] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "chutes_autopilot.storage.redis_connection":
            self.lines.append(formatEvent(event))
            if self._waiting is not None:
                self._reactor.callLater(0, self._compare)

    def said(self, line: str) -> Deferred[None]:
        """Fires when a line was logged that no earlier call has waited for or passed over."""
        waiting: Deferred[None] = Deferred()
        self._waiting = (line, waiting)
        self._compare()
        return waiting

    def _compare(self) -> None:
        while self._waiting is not None and self._heard < len(self.lines):
            wanted, waiting = self._waiting
            self._heard += 1
            if self.lines[self._heard - 1] == wanted:
                self._waiting = None
                waiting.callback(None)
