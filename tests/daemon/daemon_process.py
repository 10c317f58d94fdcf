"""twistd as a child process, the way a user runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).parent.parent.parent
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "-n")
UNWRITABLE = "/proc" if sys.platform == "linux" else "/"
"""A directory in which not even root can make a file."""
NOWHERE = "http://127.0.0.1:1"
ENVIRON = {
    "PATH": os.defpath,
    "PYTHONPATH": str(ROOT),
    "LISTEN_ADDR": "127.0.0.1:0",
    "BACKEND_BASE_URL": NOWHERE,
    "MODELS_URL": NOWHERE,
    "UTILIZATION_URL": NOWHERE,
    "EXPLORER_ENABLED": "false",
}
"""The whole environment of a child: upstreams where nothing listens, so that no test needs a network."""


class Daemon:
    """A child process with its standard output and error; dies after ``lifetime`` seconds at the latest."""

    def __init__(self, command: tuple[str, ...], cwd: str, environ: dict[str, str], lifetime: float = 60) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env={**ENVIRON, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.output: list[str] = []
        self._guard = Timer(lifetime, self.process.kill)
        self._guard.start()

    def wait_for(self, text: str) -> str:
        """Read standard output up to and with the line that contains ``text``; returns what follows it there."""
        for line in self.process.stdout:
            self.output.append(line)
            if text in line:
                return line.partition(text)[2].rstrip("\n")
        raise AssertionError(f"no {text!r} in {''.join(self.output)} {self.process.stderr.read()}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and wait: exit code, standard output, standard error."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        """Wait for the end: exit code, standard output, standard error."""
        # not communicate(): what was read ahead of the line that wait_for returned would be lost
        out, err = self.process.stdout.read(), self.process.stderr.read()
        self.process.wait()
        self._guard.cancel()
        return self.process.returncode, "".join(self.output) + out, err

    def kill(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._guard.cancel()
        self.process.stdout.close()
        self.process.stderr.close()
