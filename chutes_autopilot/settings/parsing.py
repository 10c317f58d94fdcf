"""From the text of a variable to its value: one small function for each kind of setting.

Each raises ValueError that says what is allowed. What was given is repeated only where it cannot be a secret.
"""

import ipaddress
import os
import re
import sys
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit

from chutes_autopilot.policy.client_address import parse_cidrs

DAY_MS = 86_400_000
MAX_MS = 7 * DAY_MS
MAX_WORKERS = 256
MAX_SECONDS = 30 * DAY_MS // 1000

TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
)
"""What Intel says of a platform; Revoked is missing because it is never acceptable."""


def integer(unit: str, highest: int, *, lowest: int = 1, off: bool = False) -> Callable[[str], int]:
    """A whole number within bounds.

    :param off: 0 is legal too, and switches off what the setting is for.
    """
    lowest = 0 if off else lowest

    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,20}", text) and lowest <= int(text) <= highest:
            return int(text)
        zero = " (0 turns it off)" if off else ""
        raise ValueError(f"must be a whole number of {unit} from {lowest} to {highest}{zero}, not {_quoted(text)}")

    return parse


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(text: str) -> int:
    """How many processes; ``auto`` is one for each core that this process may use."""
    if text.lower() == "auto":
        return min(MAX_WORKERS, available_cores())
    try:
        count = integer("processes", MAX_WORKERS)(text)
    except ValueError as fault:
        raise ValueError(f"{fault}; or auto, for the cores of this machine") from None
    if count > 1 and sys.platform != "linux":
        raise ValueError("must be 1 here: several processes need Linux")
    return count


def milliseconds(highest: int = MAX_MS, *, off: bool = False) -> Callable[[str], float]:
    """A time given in milliseconds, kept in seconds."""
    parse = integer("milliseconds", highest, off=off)
    return lambda text: parse(text) / 1000


def seconds(highest: int = MAX_SECONDS, *, lowest: int = 1, off: bool = False) -> Callable[[str], float]:
    """A time given and kept in seconds."""
    parse = integer("seconds", highest, lowest=lowest, off=off)
    return lambda text: float(parse(text))


def minutes(highest: int) -> Callable[[str], float]:
    """A time given in minutes, kept in seconds."""
    parse = integer("minutes", highest)
    return lambda text: parse(text) * 60.0


def one_of(*allowed: str, **spellings: str) -> Callable[[str], str]:
    """One of some words, in any case.

    :param spellings: other words, and which of the allowed ones each means.
    """

    def parse(text: str) -> str:
        value = spellings.get(text.lower(), text.lower())
        if value not in allowed:
            raise ValueError(f"must be {' or '.join(allowed)}, not {_quoted(text)}")
        return value

    return parse


def boolean(text: str) -> bool:
    """Yes or no, in the usual words."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"must be 1, true, yes, on, or 0, false, no, off, not {_quoted(text)}")


def _quoted(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def is_host(text: str, *, bracketed: bool) -> bool:
    """Whether this may stand for a host: a name, an IPv4 address, or in brackets an IPv6 address."""
    if bracketed or re.fullmatch("[0-9.]+", text):
        try:
            return ipaddress.ip_address(text).version == (6 if bracketed else 4)
        except ValueError:
            return False
    return re.fullmatch("[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?", text) is not None


def listen_addr(text: str) -> str:
    """An address to listen on, host:port, IPv6 in brackets."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    if not (is_host(inner, bracketed=bracketed) and re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise ValueError("must be host:port with a port from 0 to 65535, like 0.0.0.0:8080 or [::]:8080")
    return text


def url(*, query: bool = False, base: bool = False) -> Callable[[str], str]:
    """An http or https URL.

    :param query: a query is legal.
    :param base: paths will be appended, so a final slash goes.
    """

    # What was given is not repeated in the message: a URL may hold a password.
    def parse(text: str) -> str:
        if not re.fullmatch(r"[!-\[\]-~]+", text):
            raise ValueError("must be a URL of printable ASCII characters without spaces or backslashes")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError:
            raise ValueError("must be a URL with a valid host and a port from 1 to 65535") from None
        if url.scheme not in ("http", "https"):
            raise ValueError("must be a URL that starts with http:// or https://")
        if "@" in url.netloc:
            raise ValueError("must be a URL without user name or password")
        if "#" in text or ("?" in text and not query):
            raise ValueError(f"must be a URL without {'fragment' if query else 'query or fragment'}")
        host = url.hostname or ""
        if not is_host(host, bracketed="[" in url.netloc) or port == 0 or url.netloc.endswith(":"):
            raise ValueError("must be a URL with a valid host and a port from 1 to 65535")
        return text.rstrip("/") if base else text

    return parse


def optional_url(text: str) -> str | None:
    """A base URL, or none."""
    return _base_url(text) if text else None


_base_url = url(base=True)


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages (RFC 6454) by commas, any number of them, each as a browser would send it."""
    return tuple(_origin(item.strip()) for item in text.split(",")) if text else ()


def _origin(text: str) -> str:
    try:
        parts = urlsplit(_base_url(text))
    except ValueError:
        parts = None
    if parts is None or parts.path or text.endswith("/"):
        raise ValueError("must be origins by commas, like https://app.example.org or http://localhost:3000")
    default_port = f":{443 if parts.scheme == 'https' else 80}"
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(default_port)}"


def agent_endpoint(text: str) -> str | None:
    """Where an agent listens: an http or https URL, the absolute path of a Unix socket, or nowhere."""
    if not text or text.startswith("/"):
        return text or None
    try:
        return _base_url(text)
    except ValueError as fault:
        raise ValueError(f"{fault}, or the absolute path of a Unix socket") from None


def client_key_secret(text: str) -> bytes | None:
    """The key of a keyed hash, or none."""
    if not text:
        return None
    if len(text) < 16:
        raise ValueError("must have at least 16 characters")
    return text.encode("utf-8", "surrogateescape")


def api_key(text: str) -> bytes | None:
    """A credential that goes into a header, or none."""
    if not text:
        return None
    if not re.fullmatch("[!-~]+", text):
        raise ValueError("must be printable ASCII characters without spaces")
    return text.encode()


def tokens(text: str) -> tuple[bytes, ...]:
    """Credentials that clients may show, any number of them."""
    if not text:
        return ()
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch("[!-~]+", item) for item in items):
        raise ValueError("must be tokens of printable ASCII characters without spaces, by commas")
    return tuple(item.encode() for item in items)


def path(text: str) -> str | None:
    """The path of a file, or none."""
    return text or None


def cidrs(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks by commas or white space, any number of them."""
    return parse_cidrs(text) if text else ()


def tcb_statuses(text: str) -> tuple[str, ...]:
    """Intel's names for the state of a platform, at least one, in any case."""
    known = {status.lower(): status for status in TCB_STATUSES}
    try:
        return tuple(known[item.strip().lower()] for item in text.split(","))
    except KeyError:
        raise ValueError(f"must be names by commas, of {', '.join(TCB_STATUSES)}, not {_quoted(text)}") from None
