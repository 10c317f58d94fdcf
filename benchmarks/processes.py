"""Child processes on a core of their own, and what the kernel says they cost."""

import ctypes
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Self

PYTHON = sys.executable
START_SECONDS = 30.0
"""How long a process may take until it answers."""


class StartError(Exception):
    """A process did not start; the text holds the end of its log."""


class Child:
    """A process bound to one core, with all its output in one file; it is ended with the ``with`` block.

    :param command: its first item is a path or a name on PATH.
    :param environ: the whole environment beside PATH and HOME.
    :param slice_ms: how long it keeps the core where others want it, see `time_slice`; None: the kernel's default.
    """

    def __init__(
        self,
        command: Sequence[str],
        core: int,
        log: Path,
        environ: Mapping[str, str] | None = None,
        slice_ms: float | None = None,
    ) -> None:
        self.log = log
        self._slice_ms = slice_ms
        self._command = command
        self._core = core
        self._environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | dict(
            environ or {}
        )
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        slices = nullcontext() if self._slice_ms is None else time_slice(self._slice_ms)
        with self.log.open("ab") as output, on_core(self._core), slices:  # a child inherits both
            self.begun = time.perf_counter()
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # the session of this child alone
            self._process.wait()

    def wait_for_line(self, text: str) -> str:
        """Wait until the output holds a line with ``text``; returns that line."""
        deadline = time.perf_counter() + START_SECONDS
        while time.perf_counter() < deadline:
            for line in self.log.read_text(errors="replace").splitlines():
                if text in line:
                    return line
            self._check_running()
            time.sleep(0.01)
        raise StartError(f"{self._command[0]} did not say {text!r}; its output ends with\n{self._last_lines()}")

    def wait_for_200(self, port: int, path: str) -> float:
        """Ask until the answer is a 200; returns the seconds since the process was started."""
        while time.perf_counter() - self.begun < START_SECONDS:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return time.perf_counter() - self.begun
            except OSError:
                pass
            finally:
                connection.close()
            self._check_running()
            time.sleep(0.001)
        raise StartError(
            f"{self._command[0]} never answered {path} with 200; its output ends with\n{self._last_lines()}"
        )

    def cpu_seconds(self) -> float:
        """CPU time used so far by the process, its threads and its descendants, to the nanosecond.

        From the kernel's CPU clock of each process: /proc/PID/stat counts ticks of some milliseconds only, and
        /proc/PID/schedstat leaves out what a running thread used since its last tick.
        """
        return sum(time.clock_gettime_ns(_cpu_clock(pid)) for pid in self._pids()) / 1e9

    def memory(self) -> "Memory":
        """Memory of the process and its descendants."""
        total: dict[str, int] = {"Rss": 0, "Pss": 0}
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name = line.partition(":")[0]
                if name in total:
                    total[name] += int(line.split()[1])
        return Memory(total["Rss"], total["Pss"])

    def _pids(self) -> Iterator[int]:
        """The process and its descendants; they stay the same once a server runs."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # a process that has just ended
                continue
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        left = [self._process.pid]
        while left:
            pid = left.pop()
            left += children.get(pid, [])
            yield pid

    def _check_running(self) -> None:
        if self._process.poll() is not None:
            raise StartError(
                f"{self._command[0]} ended with exit code {self._process.returncode}; its output ends with\n"
                + self._last_lines()
            )

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@dataclass(frozen=True)
class Memory:
    """Resident memory in KiB: all of it, and with shared pages counted in proportion."""

    rss: int
    pss: int


def _cpu_clock(pid: int) -> int:
    """The clock id of another process's CPU time (Linux: see clock_getcpuclockid in glibc)."""
    return (~pid << 3) | 2


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process, and children started meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def time_slice(milliseconds: float) -> Iterator[None]:
    """Let this process, and children started meanwhile, keep a core for so long before another one has it.

    0.1 to 100 (Linux 6.12: sched_setattr(2), sched_runtime of SCHED_OTHER).

    :raises OSError: the system cannot.
    """
    _set_slice(round(milliseconds * 1_000_000))
    try:
        yield
    finally:
        _set_slice(0)


def _set_slice(nanoseconds: int) -> None:
    number = {"x86_64": 314, "aarch64": 274}[platform.machine()]  # glibc names it from 2.41 on
    size, other = 48, 0
    attributes = struct.pack("IIQiIQQQ", size, other, 0, 0, 0, nanoseconds, 0, 0)
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(number, 0, ctypes.create_string_buffer(attributes), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "sched_setattr")


def free_port() -> int:
    """A port of 127.0.0.1 that is free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def output_of(*command: str) -> str:
    """What a short command prints, standard error included; empty where it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout + done.stderr).strip()
