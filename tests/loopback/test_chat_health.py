"""Models that fail are left alone, over both readers of requests."""

import json
from pathlib import Path

import pytest
from loopback_peers import ScriptedUpstream, StartGateway, answer

from chutes_autopilot.settings import read_settings

ALIAS = "chutesai/AutoPilot"
OPERATOR = {"ADMIN_TOKEN": "operator-0123456789"}
BUSY = answer(b"busy", b"503 Service Unavailable")


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def test_a_failing_model_cools_down_and_comes_back_by_a_probe(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """After so many failures it is asked no more, then by one request again; its clients come back to it."""
    gateway = await start_gateway(COOLDOWN_FAILURES="2", COOLDOWN_MS="1000", STICKY_FAILBACK_MS="1", **OPERATOR)
    scripted.scripts["a/A"] = BUSY
    for session in (b"1", b"2", b"3", b"4"):
        answered = await gateway.chat({"model": ALIAS}, b"x-session-id: " + session)
        assert answered.header("x-chutes-autopilot-selected") == "b/B"
    assert [seen.model for seen in scripted.requests] == ["a/A", "b/B", "a/A", "b/B", "b/B", "b/B"]
    listed = await gateway.chat({"model": "a/A,c/C"})
    assert listed.header("x-chutes-autopilot-skipped") == "a/A=cooling"
    del scripted.scripts["a/A"]
    while (await gateway.chat({"model": ALIAS})).header("x-chutes-autopilot-selected") != "a/A":
        pass
    assert (await gateway.chat({"model": "a/A,c/C"})).header("x-chutes-autopilot-selected") == "a/A"
    told = json.loads((await gateway.get("/v1/autopilot/decisions", b"Authorization: Bearer operator-0123456789")).body)
    attempts = [attempt for decision in told["decisions"] for attempt in decision["attempts"]]
    assert [(attempt["model"], attempt["status"]) for attempt in attempts if attempt["probe"]] == [("a/A", 200)]


async def test_a_model_that_only_errors_is_left_alone_too(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A 500 is passed back, and counts all the same."""
    gateway = await start_gateway(COOLDOWN_FAILURES="1")
    scripted.scripts["a/A"] = answer(b"{}", b"500 Internal Server Error")
    assert [(await gateway.chat({"model": ALIAS})).status for _ in range(2)] == [500, 200]


async def test_where_all_have_failed_all_are_tried(scripted: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """A cooldown never refuses a request; an answer then gives every model its probe at once."""
    gateway = await start_gateway(COOLDOWN_FAILURES="1")
    scripted.scripts.update(dict.fromkeys(scripted.names, BUSY))
    assert (await gateway.chat({"model": ALIAS})).status == 503
    del scripted.scripts["b/B"]
    assert (await gateway.chat({"model": ALIAS})).header("x-chutes-autopilot-selected") == "b/B"
    scripted.scripts.clear()
    assert (await gateway.chat({"model": "a/A,c/C"})).header("x-chutes-autopilot-selected") == "a/A"


async def test_aliases_are_listed_and_lead_to_the_models_they_mean(
    scripted: ScriptedUpstream, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Parts of the gateway's alias narrow the ranking, an alias of the operator's stands for its list."""
    scripted.offers["b/B"] = {"confidential_compute": True}
    file = tmp_path / "aliases.json"
    file.write_text(json.dumps({"house": ["c/C", "a/A"], "private": ":tee"}))
    gateway = await start_gateway(ALIASES_FILE=str(file))
    for model, selected in ((f"{ALIAS}:tee", "b/B"), ("house", "c/C"), ("private", "b/B")):
        assert (await gateway.chat({"model": model})).header("x-chutes-autopilot-selected") == selected
        assert (await gateway.get(f"/v1/models/{model}")).status == 200
    names = [entry["id"] for entry in json.loads((await gateway.get("/v1/models")).body)["data"]]
    assert names[:2] == [ALIAS, f"{ALIAS}:tee"]
    assert names[-5:] == ["house", "private", "a/A", "b/B", "c/C"]
    assert (await gateway.get(f"/v1/models/{ALIAS}:nonsense")).status == 404


async def test_changed_aliases_hold_from_the_next_request(
    scripted: ScriptedUpstream, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """At every endpoint that takes them, and in the list of models."""
    file = tmp_path / "aliases.json"
    file.write_text('{"house": ["a/A"]}')
    gateway = await start_gateway(ALIASES_FILE=str(file))
    file.write_text('{"house": ["b/B", "c/C"], "new": ":tee"}')
    gateway.service.apply(read_settings({"ALIASES_FILE": str(file)}, lambda path: Path(path).read_text()))
    for target in (b"/v1/chat/completions", b"/v1/completions"):
        response = await gateway.chat({"model": "house"}, target=target)
        assert response.header("x-chutes-autopilot-selected") == "b/B"
    assert (await gateway.get("/v1/models/new")).status == 200


async def test_an_alias_of_one_model_is_written_into_the_body(
    scripted: ScriptedUpstream, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """The upstream never sees a name that only the operator's file knows."""
    (tmp_path / "aliases.json").write_text('{"house/one": ["a/A"]}')
    gateway = await start_gateway(ALIASES_FILE=str(tmp_path / "aliases.json"))
    response = await gateway.chat({"model": "house/one"})
    assert (scripted.requests[0].model, response.header("x-chutes-autopilot-selected")) == ("a/A", "a/A")
