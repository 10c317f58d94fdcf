"""The command line: what it takes, and from where a token comes that should not stand in it."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import get_args
from urllib.parse import urlsplit

from attrs import evolve, frozen

from chutes_autopilot.e2ee.curves import Algo
from chutes_autopilot.e2ee.measurements import MeasurementsError, read_measurements
from chutes_autopilot.e2ee_client.gateway import GatewayOptions
from chutes_autopilot.e2ee_client.local_site import is_loopback
from chutes_autopilot.e2ee_client.report import TRUSTS, TrustPolicy

TOKEN_VARIABLE = "CHUTES_AUTOPILOT_TOKEN"  # noqa: S105 - the variable's name

_TOKEN = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9_]+")
_DESCRIPTION = f"""\
The client of a Chutes AutoPilot gateway's encrypted route.

The token for the gateway comes from {TOKEN_VARIABLE} or --token-file; --token works too, but every user of this
machine can read a command line."""


class UsageError(ValueError):
    """Options that cannot be used; the text is for people and holds no token."""


@frozen
class Address:
    """Where the local endpoint listens."""

    host: str
    port: int


def parser() -> ArgumentParser:
    """The parser of the whole command line."""
    common = ArgumentParser(add_help=False)
    common.add_argument("--base-url", required=True, type=_base_url, help="of the gateway's route, with /v1/chutes")
    common.add_argument("--token", help=f"for the gateway; better in {TOKEN_VARIABLE}")
    common.add_argument("--token-file", metavar="FILE", help="file that holds the token alone")
    common.add_argument("--algo", choices=get_args(Algo), default="ed25519", help="kind of key, default ed25519")
    common.add_argument(
        "--trust", choices=TRUSTS, default="any", help="what the gateway's report must show, default any: its word"
    )
    common.add_argument(
        "--measurements", metavar="FILE", help="trust domains that are acceptable (JSON); needs --trust quote"
    )
    common.add_argument("--e2ee-version", type=int, choices=(1, 2), default=2, help="2, the default, stops replays")
    common.add_argument(
        "--in-clear",
        metavar="NAMES",
        action="append",
        default=[],
        help="members that may go or come in clear, as tools,tool_calls; without it they are refused",
    )
    record = ArgumentParser(add_help=False)
    record.add_argument("--record", metavar="FILE", help="append a line for each exchange, to be verified later")

    top = ArgumentParser(
        "python -m chutes_autopilot.e2ee_client", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    proxy = commands.add_parser("proxy", parents=[common, record], help="a local endpoint for OpenAI clients")
    proxy.add_argument("--listen", type=_address, default=Address("127.0.0.1", 8788), help="default 127.0.0.1:8788")
    chat = commands.add_parser("chat", parents=[common, record], help="ask once, print and verify the answer")
    chat.add_argument("prompt", nargs="?", help="read from standard input where it is not given, which is more private")
    chat.add_argument("--model", required=True)
    chat.add_argument("--no-stream", action="store_true", help="wait for the whole answer")
    commands.add_parser("report", parents=[common], help="fetch and check the gateway's report, in plain words")
    verify = commands.add_parser("verify", parents=[common], help="check signatures and receipts of recorded exchanges")
    verify.add_argument("record", metavar="FILE", help="what --record wrote")
    verify.add_argument("--id", help="of the one answer to verify; all of them without it")
    return top


def authorization(options: Namespace, environ: Mapping[str, str], read: Callable[[str], bytes]) -> str | None:
    """The Authorization header for the gateway; raises UsageError. The first of option, file and environment counts."""
    token: str | None = options.token
    if token is None and options.token_file is not None:
        try:
            token = read(options.token_file).decode("ascii", "replace").strip()
        except OSError as error:
            raise UsageError(f"--token-file cannot be read: {error.strerror}") from None
    if token is None:
        token = environ.get(TOKEN_VARIABLE) or None
    if token is None:
        return None
    if not _TOKEN.fullmatch(token):
        raise UsageError("the token must be visible ASCII characters without spaces")
    return f"Bearer {token}"


def gateway_options(options: Namespace, read: Callable[[str], bytes]) -> GatewayOptions:
    """How to speak to the gateway; raises UsageError."""
    names = frozenset(name for given in options.in_clear for name in given.split(","))
    if not all(_NAME.fullmatch(name) for name in names):
        raise UsageError("--in-clear takes names of members, separated by commas")
    if names & {"content", "messages", "model"}:
        raise UsageError("--in-clear cannot turn off the encryption of contents")
    policy = TrustPolicy(options.trust)
    if options.measurements is not None:
        if options.trust != "quote":
            raise UsageError("--measurements needs --trust quote: without signatures they show nothing")
        try:
            policy = evolve(policy, measurements=read_measurements(read(options.measurements), "pinned"))
        except OSError as error:
            raise UsageError(f"--measurements cannot be read: {error.strerror}") from None
        except MeasurementsError as error:
            raise UsageError(f"--measurements: {error}") from None
    return GatewayOptions(options.base_url, options.algo, options.e2ee_version, policy, names)


def warnings(base_url: str) -> Sequence[str]:
    """What a user should know of the way to the gateway."""
    url = urlsplit(base_url)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        return ("beware: without https everybody on the way can read the token (prompts and answers stay sealed)",)
    return ()


def _base_url(text: str) -> str:
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and text.isascii()
    except ValueError:
        usable = False
    if not usable or url.username is not None or url.query or url.fragment:
        raise ArgumentTypeError("an http or https URL without user, query and fragment is needed")
    if not url.path.rstrip("/").endswith("/v1/chutes"):
        raise ArgumentTypeError("the URL must end with /v1/chutes, the encrypted route")
    return text.rstrip("/")


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ArgumentTypeError("an address and a port is needed, as 127.0.0.1:8788")
    try:
        loopback = ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ArgumentTypeError("an address and a port is needed, as 127.0.0.1:8788") from None
    if not loopback.is_loopback:
        raise ArgumentTypeError("only a loopback address: whoever reaches the endpoint uses it, and in clear")
    return Address(str(loopback), int(port))
