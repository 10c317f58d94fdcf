"""Where Redis is and how to log in there, read from a URL that must never be shown."""

import re
from urllib.parse import unquote, urlsplit

import attrs

from chutes_autopilot.settings.parsing import is_host


@attrs.frozen
class RedisServer:
    """One database of one Redis.

    :param db: number of the database.
    :param tls: speak TLS, and check the server's certificate and name.
    :param username: None is Redis's user ``default``.
    :param password: None where Redis asks for none.
    """

    host: str
    port: int = 6379
    db: int = 0
    tls: bool = False
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)


def redis_server(text: str) -> RedisServer | None:
    """Read ``redis://[[user]:password@]host[:port][/db]``, with ``rediss://`` for TLS; None where there is none.

    :raises ValueError: says what is allowed and repeats nothing of the text: it may hold a password.
    """
    if not text:
        return None
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be a URL of printable ASCII characters without spaces")
    if "?" in text or "#" in text:
        raise ValueError("must be a URL without query or fragment; in a password write ? as %3F and # as %23")
    try:
        url = urlsplit(text)
        port, host = url.port, url.hostname or ""
        username, password = (unquote(part or "", errors="strict") for part in (url.username, url.password))
    except ValueError:
        raise ValueError("must be a URL like redis://user:password@host:6379/0, odd characters as %XX") from None
    if url.scheme not in ("redis", "rediss"):
        raise ValueError("must be a URL that starts with redis:// or rediss://")
    if not is_host(host, bracketed="[" in url.netloc.rpartition("@")[2]) or port == 0 or url.netloc.endswith(":"):
        raise ValueError("must be a URL with a valid host and a port from 1 to 65535")
    if username and not password:
        raise ValueError("must be a URL with a password where it has a user name")
    if not re.fullmatch("(/[0-9]{0,4})?", url.path):
        raise ValueError("must be a URL that ends with the number of a database, like redis://host:6379/0")
    return RedisServer(
        host,
        6379 if port is None else port,
        int(url.path[1:] or 0),
        url.scheme == "rediss",
        username or None,
        password or None,
    )
