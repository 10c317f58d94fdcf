"""Requests that not every model can serve, over both readers of requests."""

import pytest
from loopback_peers import ScriptedUpstream, StartGateway

ALIAS = "chutesai/AutoPilot"
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
TEXT_ONLY = {"input_modalities": ["text"]}


@pytest.fixture(params=["front", "reference"])
def path(request: pytest.FixtureRequest) -> str:
    """Every test here holds for both readers of requests."""
    return str(request.param)


async def test_an_image_goes_to_the_first_model_that_takes_images(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """The alias passes over the model before it, a list names what it skips, and text is routed as ever."""
    scripted.offers["a/A"] = TEXT_ONLY
    gateway = await start_gateway()
    seen = await gateway.chat({"model": ALIAS, "messages": IMAGE})
    assert (seen.header("x-chutes-autopilot-selected"), seen.header("x-chutes-autopilot-skipped")) == ("b/B", None)
    listed = await gateway.chat({"model": "a/A,c/C", "messages": IMAGE})
    assert listed.header("x-chutes-autopilot-selected") == "c/C"
    assert listed.header("x-chutes-autopilot-skipped") == "a/A=image"
    assert (await gateway.chat({"model": "a/A,c/C"})).header("x-chutes-autopilot-skipped") is None
    assert [request.model for request in scripted.requests] == ["b/B", "c/C", "c/C"]


async def test_nobody_is_called_where_no_model_can_serve_a_request(
    scripted: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """400 no_capable_candidate names what is missing; a model asked for by name is left to the platform."""
    scripted.offers.update(dict.fromkeys(scripted.names, TEXT_ONLY))
    gateway = await start_gateway()
    refused = await gateway.chat({"model": ALIAS, "messages": IMAGE})
    assert (refused.status, refused.error["code"]) == (400, "no_capable_candidate")
    assert "image" in refused.error["message"]
    assert scripted.requests == []
    assert (await gateway.chat({"model": "a/A", "messages": IMAGE})).status == 200
