"""Whether a host's name is found, and how fast: the first thing that fails where a container has no network."""

import socket
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chutes_autopilot.doctor.findings import Finding, fail, ok, warn

SLOW_SECONDS = 1.0
"""A look-up that takes longer costs the first request of a connection most of UPSTREAM_CONNECT_TIMEOUT_MS."""

LookUp = Callable[[str], Sequence[str]]
"""The addresses of a host; blocks, and raises OSError."""

T = TypeVar("T")


def addresses_of(host: str) -> Sequence[str]:
    """What the system's resolver says."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


async def check_name(reactor: Any, host: str, look_up: LookUp) -> Finding | None:
    """Look a name up as the gateway does, by the system's resolver; None for an address, which needs no look-up."""
    if isIPAddress(host) or isIPv6Address(host):
        return None
    started = reactor.seconds()
    try:
        addresses = await in_daemon_thread(reactor, lambda: look_up(host))
    except (OSError, UnicodeError) as error:
        return fail(
            "dns",
            host,
            f"the name is not found ({getattr(error, 'strerror', None) or type(error).__name__})",
            "check the spelling in the settings, then the resolver (/etc/resolv.conf, in a container its dns option)",
        )
    seconds = reactor.seconds() - started
    v6 = sum(":" in address for address in addresses)
    seen = f"{len(addresses) - v6} IPv4 and {v6} IPv6 addresses in {seconds * 1000:.0f} ms"
    if seconds > SLOW_SECONDS:
        return warn("dns", host, seen, "the resolver is slow: use a nearer one, or a cache on this machine")
    return ok("dns", host, seen)


def in_daemon_thread(reactor: Any, work: Callable[[], T]) -> Deferred[T]:
    """What ``work`` returns. The process may end while it is still under way: the reactor's own threads, which a
    hanging look-up can hold for minutes, would be waited for.
    """
    result: Deferred[T] = Deferred()

    def run() -> None:
        try:
            told, value = result.callback, work()
        except BaseException:  # noqa: BLE001 - handed over as it is
            reactor.callFromThread(result.errback, Failure())
        else:
            reactor.callFromThread(told, value)

    Thread(target=run, daemon=True).start()
    return result
