"""Why a connection failed, in the words of people and not of the library."""

from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet import error as network
from twisted.internet.defer import TimeoutError as Late
from twisted.web.client import ResponseFailed, ResponseNeverReceived

_WORDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (network.DNSLookupError, "its name cannot be resolved"),
    (network.ConnectionRefusedError, "it refused the connection"),
    (network.NoRouteError, "there is no way to it"),
    ((network.TimeoutError, Late), "no connection to it came about in time"),
    ((network.ConnectionDone, network.ConnectionLost), "it closed the connection before the end of its answer"),
    (SSL.Error, "the TLS handshake with it failed"),
    ((ResponseFailed, ResponseNeverReceived), "it gave no valid answer"),
)


def in_words(error: BaseException) -> str:
    """What happened, said of a server that was named before; the name of the class where it is none of the usual ones.

    Never text of an upstream, an address or a URL.
    """
    while isinstance(error, ResponseFailed | ResponseNeverReceived) and error.reasons:
        error = error.reasons[0].value
    return next(
        (words for kinds, words in _WORDS if isinstance(error, kinds)), f"it cannot be asked ({type(error).__name__})"
    )


def server_of(url: str) -> str:
    """Host and port of a URL as they stand there, without credentials, path and query."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return "an address that is none"
