"""Refusals of the platform: told apart, passed on unchanged, and not to be asked for again at once."""

import pytest
from loopback_peers import ScriptedUpstream, StartGateway, answer, chunk, reset, respond

ALIAS = "chutesai/AutoPilot"
TOO_MANY = b"429 Too Many Requests"
BAN = b"<html>Access denied</html>"
CAPACITY = b'{"detail":"Infrastructure is at maximum capacity, try again later"}'


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def test_the_kinds_of_429_are_counted_and_pass_unchanged(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Whether an answer comes whole or in pieces; SDKs may repeat what is no ban."""
    gateway = await start_gateway()
    chunked = b"HTTP/1.1 429 Too Many Requests\r\nTransfer-Encoding: chunked\r\n\r\n"
    scripted.scripts["a/A"] = answer(CAPACITY, TOO_MANY)
    scripted.scripts["b/B"] = respond(chunked + chunk(CAPACITY[:9]) + chunk(CAPACITY[9:]) + b"0\r\n\r\n")
    for model in (ALIAS, "b/B"):
        refused = await gateway.chat({"model": model})
        assert (refused.status, refused.body, refused.header("x-should-retry")) == (429, CAPACITY, None)
    assert (await gateway.metrics())['rate_limited_total{kind="capacity"}'] == 2


async def test_a_banned_client_is_answered_here_for_a_while(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The ban page says not to come back at once; who does is not let through, and others are."""
    gateway = await start_gateway()
    scripted.scripts["a/A"] = answer(BAN, TOO_MANY, b"Content-Type: text/html")
    banned = await gateway.chat({"model": ALIAS}, b"Authorization: Bearer x")
    assert (banned.status, banned.body) == (429, BAN)
    assert (banned.header("x-should-retry"), banned.header("retry-after")) == ("false", "60")
    again = await gateway.chat({"model": "b/B"}, b"Authorization: Bearer x", b"X-Session-Id: other")
    assert (again.status, again.error["code"], again.header("x-should-retry")) == (429, "upstream_ban", "false")
    assert (await gateway.chat({"model": "b/B"}, b"Authorization: Bearer y")).status == 200
    assert len(scripted.requests) == 2


async def test_what_the_platform_says_of_when_counts(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Its Retry-After is the one that the client gets, once, and for so long a banned one is answered here."""
    gateway = await start_gateway()
    scripted.scripts["a/A"] = answer(BAN, TOO_MANY, b"Content-Type: text/html", b"Retry-After: 600")
    banned = await gateway.chat({"model": ALIAS})
    assert [value for name, value in banned.headers if name == "retry-after"] == ["600"]
    assert int((await gateway.chat({"model": ALIAS})).header("retry-after") or 0) > 60


async def test_the_fuse_can_be_switched_off(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Then every call goes out."""
    gateway = await start_gateway(BAN_FUSE="false")
    scripted.scripts["a/A"] = answer(BAN, TOO_MANY)
    assert [(await gateway.chat({"model": ALIAS})).body for _ in range(2)] == [BAN, BAN]


@pytest.mark.parametrize(("script", "status"), [(answer(b"busy", b"503 Service Unavailable"), 503), (reset, 502)])
async def test_after_the_last_candidate_an_sdk_is_told_not_to_repeat(
    scripted: ScriptedUpstream, start_gateway: StartGateway, script: object, status: int
) -> None:
    """Failover was the retry; one model by name is left to the SDK."""
    gateway = await start_gateway()
    scripted.scripts.update(dict.fromkeys(scripted.names, script))
    failed = await gateway.chat({"model": ALIAS})
    assert (failed.status, failed.header("x-should-retry")) == (status, "false")
    assert 1 <= int(failed.header("retry-after") or 0) <= 75
    direct = await gateway.chat({"model": "a/A"})
    assert (direct.status, direct.header("x-should-retry")) == (status, None)


async def test_clients_are_spread_over_the_models(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """With AUTOPILOT_SPREAD=rendezvous each client keeps a first model of its own."""
    gateway = await start_gateway(AUTOPILOT_SPREAD="rendezvous", STICKY_TTL_SECS="0")
    clients = [b"Authorization: Bearer %d" % number for number in range(20)]
    first, again = [
        [(await gateway.chat({"model": ALIAS}, c)).header("x-chutes-autopilot-selected") for c in clients]
        for _ in range(2)
    ]
    assert first == again
    assert len(set(first)) > 1
