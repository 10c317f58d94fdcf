"""Why a request went where it went, over both readers of requests."""

import json

import pytest
from loopback_peers import ScriptedUpstream, StartGateway, answer

from chutes_autopilot.settings import read_settings

ALIAS = "chutesai/AutoPilot"
ALICE, BOB = b"Authorization: Bearer alice", b"Authorization: Bearer bob"


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def test_a_request_is_explained_to_its_client_alone(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Attempts, candidates and the commit, in any of its sessions; the operator sees the last ones of everybody."""
    gateway = await start_gateway(ADMIN_TOKEN="the-operators-token-0123456789")
    scripted.scripts["a/A"] = answer(b"busy", b"503 Service Unavailable")
    asked = await gateway.chat(
        {"model": ALIAS}, ALICE, b"X-Session-Id: s", b"X-Request-Id: r1", b"X-Chutes-Autopilot-Explain: 1"
    )
    assert "selected=b/B" in (asked.header("x-chutes-autopilot-explain") or "")
    assert not any(name.lower().startswith(b"x-chutes-autopilot") for name, _ in scripted.requests[0].headers)
    told = json.loads((await gateway.get("/v1/autopilot/decisions/r1", ALICE)).body)
    tried = [(each["model"], each["failure"], each["followed"]) for each in told["attempts"]]
    assert tried == [("a/A", "upstream_503", "next"), ("b/B", None, "committed")]
    assert (told["selected"], told["outcome"], told["order"]) == ("b/B", "complete", ["a/A", "b/B", "c/C"])
    assert (await gateway.get("/v1/autopilot/decisions/r1", BOB)).status == 404
    operator = b"Authorization: Bearer the-operators-token-0123456789"
    assert json.loads((await gateway.get("/v1/autopilot/decisions", operator)).body)["decisions"] == [told]
    assert (await gateway.get("/v1/autopilot/decisions", ALICE)).status == 401


async def test_a_record_without_a_credential_is_for_its_address(start_gateway: StartGateway) -> None:
    """A proxy that is believed says which; what anybody else says of it counts for nothing."""
    here, there = b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-For: 192.0.2.2"
    behind = await start_gateway(TRUST_PROXY_HEADERS="true", TRUSTED_PROXY_CIDRS="127.0.0.1")
    open_to_all = await start_gateway()
    for gateway, statuses in ((behind, [200, 404, 404, 404]), (open_to_all, [200, 200, 200, 404])):
        await gateway.chat({"model": "a/A"}, here, b"X-Request-Id: r1")
        asking = ((here,), (there,), (), (here, ALICE))
        answers = [await gateway.get("/v1/autopilot/decisions/r1", *headers) for headers in asking]
        assert [response.status for response in answers] == statuses


async def test_a_proxy_that_is_trusted_no_more_is_not_believed_on_open_connections(start_gateway: StartGateway) -> None:
    """The next request with the same head has another sender."""
    trusting = {"TRUST_PROXY_HEADERS": "true", "TRUSTED_PROXY_CIDRS": "127.0.0.1"}
    gateway = await start_gateway(**trusting)
    client = await gateway.connect()
    for status in (404, 200):
        client.received = b""
        client.post(b'{"model":"a/A"}', b"X-Forwarded-For: 192.0.2.1", b"X-Request-Id: r1")
        await client.complete()
        assert (await gateway.get("/v1/autopilot/decisions/r1")).status == status
        gateway.service.apply(read_settings({**trusting, "TRUSTED_PROXY_CIDRS": "192.0.2.9"}, lambda path: ""))


async def test_a_refused_request_leaves_a_record_too(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """It says with which error; without ADMIN_TOKEN nobody gets the list."""
    gateway = await start_gateway()
    await gateway.chat({"model": "no/such"}, b"X-Request-Id: r2")
    told = json.loads((await gateway.get("/v1/autopilot/decisions/r2")).body)
    assert (told["error"], told["outcome"], told["attempts"]) == ("unknown_model", "refused", [])
    assert (await gateway.get("/v1/autopilot/decisions")).status == 404


async def test_a_plan_calls_nobody(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """It is what the same body would be tried on, with the reasons, or the same refusal."""
    scripted.offers["a/A"] = {"supported_features": ["json_mode"]}
    gateway = await start_gateway()
    body = {"model": ALIAS, "tools": [{"type": "function", "function": {"name": "f"}}]}
    planned = json.loads((await gateway.chat(body, target=b"/v1/autopilot/route")).body)
    assert (planned["order"], planned["needs"]) == (["b/B", "c/C"], ["tools"])
    verdicts = {each["model"]: (each["verdict"], each.get("reason")) for each in planned["candidates"]}
    assert verdicts["a/A"] == ("incapable", "tools")
    assert (await gateway.chat(b"{", target=b"/v1/autopilot/route")).error["code"] == "invalid_json"
    assert scripted.requests == []
