"""GET /v1/attestation/report: keys, quotes where there is a TEE, and no claim where there is none."""

from typing import Any

import attrs
import pytest
from in_memory_route import Asked, app, get
from twisted.internet.defer import Deferred, fail, succeed

from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets
from chutes_autopilot.errors import e2ee_error
from chutes_autopilot.upstream.dstack import AgentQuote, DstackError
from chutes_autopilot.web.attestation import AttestationRoute
from chutes_autopilot.web.site import GatewayRequest

NOW = 1_800_000_000
NONCE = "a0b031fb04f445a46ab5599deca43759e742a1d186a5d2e12126cab2b6f4b14c"

ECDSA_PUBLIC = (
    "c167b131896bc732304ef0b3311df67db046b68385cb4b93e1f9dc74ed7e4d20"
    "9f3ed8180ed3270b2ceacd7de28f60c6b6bb57b3e094b07a63adc57ef0200fdd"
)
ECDSA_ADDRESS = "0x0F36912B165f56f07bb0CEeD62a60fD0186ab7B6"
ED25519_PUBLIC = "9508aae76b823ce1fafe7f5fa2b58b5390e12ded4d8f655041570ea53e34a985"

CURRENT = keys_from_secrets(
    "current",
    bytes.fromhex("20488b6b97947afd5b18214687cb62f5f6b4ee04084c8495ad7ea081c3ea88f4"),
    bytes.fromhex("a34a6cab43452c1c7f07fe1938709936069dfca3b3920976ea3830dda4d68260"),
)
OLD = keys_from_secrets("old", bytes([1] * 32), bytes([2] * 32), NOW + 60)
OVER = keys_from_secrets("over", bytes([3] * 32), bytes([4] * 32), NOW - 60)
KEYS = ServerKeys((*CURRENT, *OLD, *OVER))

INFO = {"app_id": "x", "tcb_info": {"mrtd": "00", "rtmrs": [1, 2.5]}}


@attrs.define(eq=False)
class Agent:
    """Quotes whatever it is given, or fails from the ``failing``-th call on; ``waiting`` quotes come later."""

    failing: int = 99
    calls: list[str] = attrs.field(factory=list)
    waiting: Deferred[AgentQuote] | None = None

    def get_quote(self, report_data: bytes) -> Any:
        self.calls.append(report_data.hex())
        if self.waiting is not None:
            return self.waiting
        return self._unless_failing(AgentQuote(report_data.hex(), '[{"event": 1}]', '{"cpu": 2}'))

    def info(self) -> Any:
        self.calls.append("info")
        return self._unless_failing(INFO)

    def _unless_failing(self, answer: Any) -> Any:
        return succeed(answer) if len(self.calls) < self.failing else fail(DstackError("network"))


def ask(query: str = "", *, agent: Agent | None = None, now: float = NOW, **changed: Any) -> Asked:
    def authenticate(request: GatewayRequest) -> bytes:
        if request.getHeader(b"authorization") != b"Bearer t":
            raise e2ee_error("invalid_api_key", "No.")
        return b""

    route = AttestationRoute(authenticate, lambda: KEYS, agent or Agent(), "auto", "tls", lambda: now)
    for name, value in changed.items():
        setattr(route, name, value)
    made = app()
    made.route("/v1/attestation/report")(lambda request: route.report(request))
    return get(made, "/v1/attestation/report" + query, "Authorization: Bearer t")


def test_the_whole_report() -> None:
    """Every member the document names, for the current key and for each active one of its algorithm."""
    asked = ask(f"?signing_algo=ecdsa&nonce={NONCE}")
    assert (asked.status, asked.header("content-type"), asked.header("cache-control")) == (
        200,
        "application/json",
        "no-store",
    )
    report = asked.json
    first, second = report.pop("all_attestations")
    quote = ECDSA_ADDRESS[2:].lower() + "0" * 24 + NONCE
    assert report == first
    assert report == {
        "signing_address": ECDSA_ADDRESS,
        "signing_algo": "ecdsa",
        "signing_public_key": ECDSA_PUBLIC,
        "request_nonce": NONCE,
        "intel_quote": quote,
        "quote": quote,
        "event_log": '[{"event": 1}]',
        "info": INFO,
        "vm_config": '{"cpu": 2}',
        "nvidia_payload": None,
        "attested": True,
        "not_after": None,
        "transport": "tls",
    }
    assert (second["signing_address"], second["not_after"]) == (OLD[0].address, NOW + 60)
    assert second["quote"] == OLD[0].address[2:].lower() + "0" * 24 + NONCE


def test_an_ed25519_key_is_bound_whole() -> None:
    """All 32 bytes of it, then the nonce."""
    report = ask(f"?signing_algo=ed25519&nonce={NONCE}", transport="e2ee").json
    assert report["signing_address"] == report["signing_public_key"] == ED25519_PUBLIC
    assert report["quote"] == ED25519_PUBLIC + NONCE
    assert report["transport"] == "e2ee"


def test_ecdsa_and_a_fresh_nonce_are_the_defaults() -> None:
    """Nobody's quote is of use to somebody else."""
    one, other = ask().json, ask().json
    assert one["signing_algo"] == "ecdsa"
    assert len(one["request_nonce"]) == 64
    assert one["request_nonce"] != other["request_nonce"]
    assert one["quote"].endswith(one["request_nonce"])


def test_a_nonce_may_be_written_in_upper_case() -> None:
    """It comes back as the bytes it stands for."""
    assert ask(f"?nonce={NONCE.upper()}").json["request_nonce"] == NONCE


@pytest.mark.parametrize(
    ("query", "status", "code", "param"),
    [
        ("?signing_algo=rsa", 400, "invalid_signing_algo", "signing_algo"),
        ("?signing_algo=", 400, "invalid_signing_algo", "signing_algo"),
        ("?signing_algo=ECDSA", 400, "invalid_signing_algo", "signing_algo"),
        ("?signing_algo=ecdsa&signing_algo=ecdsa", 400, "invalid_signing_algo", "signing_algo"),
        ("?nonce=", 400, "invalid_nonce", "nonce"),
        ("?nonce=" + NONCE[1:], 400, "invalid_nonce", "nonce"),
        ("?nonce=" + NONCE + "%0a", 400, "invalid_nonce", "nonce"),
        ("?nonce=0x" + NONCE[2:], 400, "invalid_nonce", "nonce"),
        (f"?nonce={NONCE}&nonce={NONCE}", 400, "invalid_nonce", "nonce"),
        ("?signing_address=", 404, "not_found", "signing_address"),
        ("?signing_address=%ff", 404, "not_found", "signing_address"),
        (f"?signing_address={OVER[0].address}", 404, "not_found", "signing_address"),
        (f"?signing_address={ED25519_PUBLIC}", 404, "not_found", "signing_address"),
    ],
)
def test_what_cannot_be_reported(query: str, status: int, code: str, param: str) -> None:
    """Is told before the agent is asked for anything."""
    agent = Agent()
    assert ask(query, agent=agent).error == (status, code, param)
    assert not agent.calls


@pytest.mark.parametrize("address", [OLD[0].address, OLD[0].address.lower(), OLD[0].address.upper()])
def test_a_key_may_be_asked_for_by_its_address(address: str) -> None:
    """In any case; it comes first, and the others follow."""
    report = ask(f"?signing_address={address}").json
    assert report["signing_address"] == OLD[0].address
    assert [each["signing_address"] for each in report["all_attestations"]] == [OLD[0].address, ECDSA_ADDRESS]


def test_a_key_leaves_the_report_when_its_time_is_over() -> None:
    """And is not found any more."""
    assert len(ask(now=NOW + 60).json["all_attestations"]) == 2
    assert len(ask(now=NOW + 61).json["all_attestations"]) == 1
    assert ask(f"?signing_address={OLD[0].address}", now=NOW + 61).status == 404


def test_when_the_time_of_every_key_is_over() -> None:
    """There is nothing to report, however current the first one is."""
    assert ask(keys=lambda: ServerKeys(OVER)).error == (503, "attestation_unavailable", None)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_without_quotes_nothing_is_claimed(failing: int) -> None:
    """Whether the agent gives nothing at all, or no quote for one of the keys."""
    asked = ask(agent=Agent(failing))
    assert asked.status == 200
    for report in (asked.json, *asked.json["all_attestations"]):
        assert report["attested"] is False
        for member in ("intel_quote", "quote", "event_log", "info", "vm_config"):
            assert report[member] is None
    assert asked.json["signing_public_key"] == ECDSA_PUBLIC


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_where_quotes_are_required(failing: int) -> None:
    """There is no report without them."""
    assert ask(agent=Agent(failing), mode="required").error == (503, "attestation_unavailable", None)
    assert ask(mode="required").json["attested"] is True


def test_the_agent_is_not_asked_where_attestation_is_off() -> None:
    """And nothing is claimed."""
    agent = Agent()
    assert ask(agent=agent, mode="off").json["attested"] is False
    assert not agent.calls


def test_strangers_get_nothing() -> None:
    """Not even told that their parameters are wrong."""
    agent = Agent()

    def refuse(request: GatewayRequest) -> bytes:
        raise e2ee_error("invalid_api_key", "No.")

    assert ask("?nonce=x", agent=agent, authenticate=refuse).error == (401, "invalid_api_key", None)
    assert not agent.calls


def test_before_there_are_keys() -> None:
    """The source's own error is the answer."""

    def keys() -> ServerKeys:
        raise e2ee_error("attestation_unavailable", "Not yet.", headers=((b"Retry-After", b"5"),))

    asked = ask(keys=keys)
    assert (asked.error, asked.header("retry-after")) == ((503, "attestation_unavailable", None), "5")


def test_a_client_that_leaves_waits_for_no_quote() -> None:
    """The call is cancelled, so that its place goes to somebody else."""
    cancelled: list[Deferred[AgentQuote]] = []
    asked = ask(agent=Agent(waiting=Deferred(cancelled.append)))
    assert not asked.answered
    asked.leave()
    assert cancelled
    assert not asked.answered
