"""Where the visitor reaches this service, so that what it is shown to copy works as it stands."""

import re

from chutes_autopilot.policy.client_address import TrustedProxies, is_trusted
from chutes_autopilot.relay.call import peer_of
from chutes_autopilot.web.site import GatewayRequest

FALLBACK = "http://127.0.0.1:8080"
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?").fullmatch
"""A name or an address, perhaps with a port: nothing that could mean anything in a shell or in a program."""


def origin_of(request: GatewayRequest, trusted: TrustedProxies | None) -> str:
    """Scheme, host and port, without a path.

    :param trusted: the proxies whose X-Forwarded-Proto and X-Forwarded-Host are believed; the left-most value counts,
        as of X-Forwarded-For.
    """
    scheme, host = "https" if request.isSecure() else "http", _first(request, b"Host")
    if is_trusted(peer_of(request.getClientAddress()), trusted):
        said = _first(request, b"X-Forwarded-Proto").lower()
        scheme = said if said in ("http", "https") else scheme
        host = _first(request, b"X-Forwarded-Host") or host
    return f"{scheme}://{host}" if _HOST(host) else FALLBACK


def _first(request: GatewayRequest, name: bytes) -> str:
    value: bytes = request.getHeader(name) or b""
    return value.partition(b",")[0].strip(b" \t").decode("latin-1")
