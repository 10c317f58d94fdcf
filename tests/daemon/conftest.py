"""twistd as a child process, the way a user runs it."""

import sys
from collections.abc import Callable, Iterator

import pytest
from daemon_process import ROOT, TWISTD, UNWRITABLE, Daemon

sys.path.append(str(ROOT / "tests" / "storage"))  # for redis_process


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """Start a child: ``start(*arguments, command=TWISTD, cwd=UNWRITABLE, **environ)``."""
    daemons: list[Daemon] = []

    def start(*arguments: str, command: tuple[str, ...] = TWISTD, cwd: str = UNWRITABLE, **environ: str) -> Daemon:
        if command is TWISTD and "chutes-autopilot" not in arguments:
            arguments = ("chutes-autopilot", *arguments)
        daemons.append(Daemon((*command, *arguments), cwd, environ))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()
