"""Requests sealed to the instance by the real service, answered by the simulated platform, over real sockets."""

import json

import pytest
from chain_peers import OLD, ONE, THREE, TOKENS, Chain, StartChain, fires, said, simulated, text_of
from pytest_twisted import blockon
from twisted.internet.defer import gatherResults

ALIAS = "chutesai/AutoPilot"


@pytest.fixture
def chain(start_chain: StartChain) -> Chain:
    """A chain with the default settings."""
    started: Chain = blockon(fires(start_chain()))
    return started


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "served", "attempts"),
    [(ALIAS, THREE, 2), (f"{ONE}, {THREE}", ONE, 1), (ONE, ONE, 1)],
    ids=["alias", "list", "direct"],
)
async def test_both_hops_are_sealed(chain: Chain, model: str, served: str, attempts: int, stream: bool) -> None:
    """In clear or encrypted to the service, whatever names the model: the instance alone reads the request.

    The alias' first choice has no instance with a key, and is passed over.
    """
    response, text = await chain.ask_sealed(model, stream=stream, temperature=0.70)
    assert (response.status, text) == (200, said(served)), response.body
    assert response.header("x-chutes-autopilot-attempts") == str(attempts)
    assert response.header("x-e2ee-applied") == "true"
    plain = await chain.ask(model, stream=stream, temperature=0.70)
    assert (plain.status, text_of(plain)) == (200, said(served))
    assert plain.header("x-e2ee-applied") == "false"
    for seen in chain.chutes.requests:
        asked = json.loads(seen.body)
        assert len(asked.pop("e2e_response_pk")) == 1580
        assert asked == {
            "model": served,
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": stream,
            "n_tokens": TOKENS,
            "temperature": 0.7,
        }
        sent = {name.lower(): value for name, value in seen.headers}
        assert sent[b"authorization"] == b"Bearer cpk_operator"
        assert sent[b"x-e2e-stream"] == str(stream).lower().encode()
    assert len(chain.chutes.requests) == 2
    assert not chain.simulator.requests  # nothing went the way in clear


async def test_a_chute_without_a_capable_instance_loses_its_place(start_chain: StartChain) -> None:
    """Once it is known the next request goes straight to one that has some, however few the attempts."""
    chain = await start_chain(MAX_FAILOVER_ATTEMPTS="1")
    assert (await chain.ask(ALIAS)).error["code"] == "chutes_e2ee_no_session"
    for model in (ALIAS, f"{OLD}, {THREE}"):
        response = await chain.ask(model)
        assert (response.status, response.header("x-chutes-autopilot-attempts")) == (200, "1")
        assert text_of(response) == said(THREE)
    assert response.header("x-chutes-autopilot-skipped") == f"{OLD}=no_instances"
    assert (await chain.ask(OLD)).error["code"] == "chutes_e2ee_no_session"


async def test_each_attempt_is_sealed_anew(chain: Chain) -> None:
    """Two chutes see the same request, each with its own model, another nonce and another key for the answer."""
    chain.fault("cut_before_body", THREE)
    response, text = await chain.ask_sealed(f"{THREE}, {ONE}", stream=True)
    assert (text, response.header("x-chutes-autopilot-selected")) == (said(ONE), ONE)
    first, second = chain.chutes.requests
    one, other = json.loads(first.body), json.loads(second.body)
    assert (one.pop("model"), other.pop("model")) == (THREE, ONE)
    assert one.pop("e2e_response_pk") != other.pop("e2e_response_pk")
    assert one == other
    assert first.nonce != second.nonce


async def test_a_client_that_asks_for_counters_gets_them(chain: Chain) -> None:
    """The platform forces usage into every chunk; who did not ask for it does not see it."""
    without = await chain.ask(ONE, stream=True)
    usage = await chain.ask(ONE, stream=True, stream_options={"include_usage": True})
    assert b'"usage"' not in without.body
    assert usage.body.count(b'"usage"') == 1


async def test_hundreds_of_requests_never_show_the_limit_of_discovery(start_chain: StartChain) -> None:
    """Three chutes, a limit that others use too: a request is served, or told that there is no session, but never 429.

    No nonce is used twice: the platform would refuse it.
    """
    models = tuple(simulated(f"peer/{name}-TEE", 5) for name in "ABC")
    chain = await start_chain(models, CHUTES_E2EE_DISCOVERY_WAIT_MS="100")
    for _ in range(4):  # somebody else's
        assert chain.chutes.discovery_limit.allows(chain.clock.seconds())
    names = ", ".join(model.name for model in models)
    statuses: dict[tuple[int, str | None], int] = {}
    for _ in range(20):
        for answer in await gatherResults([fires(chain.ask(names, n_tokens=1)) for _ in range(25)]):
            code = None if answer.status == 200 else answer.error["code"]
            statuses[answer.status, code] = statuses.get((answer.status, code), 0) + 1
            assert (answer.status == 200) is (answer.header("retry-after") is None)
    # six listings of fifty nonces are what the limit leaves
    assert statuses == {(200, None): 300, (503, "chutes_e2ee_no_session"): 200}
    assert (chain.chutes.discovery_limit.refused, chain.chutes.nonces.refused) == (1, 0)
    chain.clock.advance(62)
    assert (await chain.ask(names, n_tokens=1)).status == 200


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [("cpk_refused_1", 502, "chutes_upstream_auth"), ("cpk_unpaid_1", 503, "chutes_upstream_quota")],
)
async def test_what_is_wrong_with_the_operators_key(start_chain: StartChain, key: str, status: int, code: str) -> None:
    """It is told as the operator's business, and no other model is tried."""
    chain = await start_chain(CHUTES_API_KEY=key)
    for response in (await chain.ask(f"{ONE}, {THREE}"), (await chain.ask_sealed(f"{ONE}, {THREE}"))[0]):
        assert (response.status, response.error["type"], response.error["code"]) == (status, code, code)
        assert response.header("x-chutes-autopilot-attempts") == "1"
        assert b"cpk" not in response.body


async def test_a_full_instance_is_the_clients_to_wait_for(chain: Chain) -> None:
    """A 429 is relayed in our own words, to either client."""
    chain.fault("instance_full", THREE, 2)
    for response in (await chain.ask(f"{THREE}, {ONE}"), (await chain.ask_sealed(f"{THREE}, {ONE}"))[0]):
        assert (response.status, response.error["code"]) == (429, "rate_limit_exceeded")
        assert b"maximum capacity" not in response.body
    assert len(chain.chutes.requests) == 2


async def test_a_full_instance_gives_way_where_the_operator_says_so(start_chain: StartChain) -> None:
    """CHUTES_E2EE_INSTANCE_429=next-instance: another one of the same chute, never another model."""
    chain = await start_chain(CHUTES_E2EE_INSTANCE_429="next-instance")
    chain.fault("instance_full", THREE)
    response, text = await chain.ask_sealed(f"{THREE}, {ONE}")
    assert (text, response.header("x-chutes-autopilot-attempts")) == (said(THREE), "1")
    first, second = chain.chutes.requests
    assert first.instance_id != second.instance_id
    chain.fault("instance_full", THREE, 2)
    assert (await chain.ask(f"{THREE}, {ONE}")).status == 429
