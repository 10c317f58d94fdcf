"""How many file descriptors the process may have: each client connection and each upstream connection takes one."""

import resource
from contextlib import suppress

OWN_DESCRIPTORS = 100
"""Beside connections: the log, the reactor's own, listening sockets, files being read."""


def enough_descriptors(max_connections: int, max_inflight: int) -> int:
    """How many are needed for that many clients, of whom so many are being answered by an upstream."""
    return max(-(-max_connections * 5 // 4), max_connections + max_inflight + OWN_DESCRIPTORS)


def raise_descriptor_limit(wanted: int) -> None:
    """Raise the soft limit of open files to ``wanted``, or as far as the hard one allows; never lower it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # some systems have a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def connection_limit(max_connections: int) -> int:
    """``max_connections``, or 80% of the descriptors in force where that is less: the rest is for upstreams."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max_connections if soft == resource.RLIM_INFINITY else max(1, min(max_connections, soft * 4 // 5))
