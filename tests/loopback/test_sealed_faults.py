"""Every fault of the sealed transport, played by the simulated platform: who notices it, and what the client sees."""

import pytest
from chain_peers import MODELS, ONE, THREE, TOKENS, Chain, StartChain, ended, fires, said, text_of
from pytest_twisted import blockon

BOTH = f"{ONE}, {THREE}"
TAMPERING = 301.0
"""Seconds after which an instance whose answer was refused may be chosen again."""


@pytest.fixture
def chain(start_chain: StartChain) -> Chain:
    """A chain with the default settings, all of whose instances have keys."""
    started: Chain = blockon(fires(start_chain(MODELS[1:])))
    return started


async def is_out(chain: Chain, model: str) -> bool:
    """Whether a model is left without an instance that may be chosen."""
    response = await chain.ask(model, stream=True)
    return response.status == 503 and response.error["code"] == "chutes_e2ee_no_session"


# a stream's faults before its first event, and what the transport counts; all of them quarantine the instance
BEFORE = {
    "no_init": "no_init",
    "second_init": "second_init",
    "record_before_init": "no_init",
    "short_blob": "bad_blob",
    "bad_tag": "bad_tag",
    "inner_garbage": "garbage",
    "record_repeated": "duplicate_record",
    "records_swapped": "reordered",
    "truncated": "truncated",
    "clear_error": "clear_error",
    "clear_done": "truncated",
    "garbage_line": "garbage",
    "empty": "no_init",
    "cut_before_body": "connection_lost",
}
# those of an answer that is no stream
WHOLE = {
    "bad_tag": "bad_tag",
    "short_blob": "bad_blob",
    "inner_garbage": "garbage",
    "gzip_bomb": "too_large",
    "gzip_cut": "bad_gzip",
    "second_gzip_member": "bad_gzip",
    "json_envelope": "garbage",
    "empty": "bad_blob",
    "cut": "connection_lost",
    "cut_before_body": "connection_lost",
}
# those of a stream of which the client has something already
AFTER = {
    name: BEFORE[name]
    for name in (
        "second_init",
        "bad_tag",
        "inner_garbage",
        "record_repeated",
        "records_swapped",
        "truncated",
        "clear_error",
        "clear_done",
        "garbage_line",
    )
} | {"cut": "connection_lost"}


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize(
    ("fault", "code", "stream"),
    [(fault, code, True) for fault, code in BEFORE.items()] + [(fault, code, False) for fault, code in WHOLE.items()],
)
async def test_a_fault_before_the_commit_fails_over(
    chain: Chain, fault: str, code: str, stream: bool, encrypted: bool
) -> None:
    """The client has the other model's answer, whole; the instance is left alone for its time, and then is not."""
    chain.fault(fault, ONE)
    if encrypted:
        response, text = await chain.ask_sealed(BOTH, stream=stream)
    else:
        response = await chain.ask(BOTH, stream=stream)
        text = text_of(response)
    assert (response.status, text, response.header("x-chutes-autopilot-attempts")) == (200, said(THREE), "2")
    assert await chain.refusals() == {code: 1}
    assert await is_out(chain, ONE)
    chain.clock.advance(31.0 if code == "connection_lost" else TAMPERING)
    assert text_of(await chain.ask(ONE)) == said(ONE)


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize(("fault", "code"), AFTER.items())
async def test_a_fault_after_the_commit_cuts_the_answer(chain: Chain, fault: str, code: str, encrypted: bool) -> None:
    """No end mark, no last chunk, no other attempt; a client that has encryption is told before the cut."""
    chain.simulator.token_gap = 1.0
    if fault == "cut":
        chain.fault(fault, ONE)
    else:
        chain.fault(fault, ONE, after=6)
    client, sealing = await chain.begin(BOTH, encrypted=encrypted)
    chain.clock.pump([1.0] * TOKENS)
    received = await ended(client)
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")
    assert b"simulated garbage" not in received
    assert b"simulated forgery" not in received
    if sealing is not None:
        assert b'"code":"upstream_stream_truncated"' in received.replace(b": ", b":")
    metrics = await chain.gateway.metrics()
    assert (await chain.refusals(), metrics["streams_cut_total"]) == ({code: 1}, 1)
    assert len(chain.chutes.requests) == 1
    chain.simulator.token_gap = 0.0
    assert await is_out(chain, ONE)


@pytest.mark.parametrize(
    ("fault", "advance", "reason"),
    [
        ("silent_head", 10.0, "upstream_header_timeout"),
        ("silent_body", 4.0, "upstream_first_body_byte_timeout"),
        ("stall", 4.0, "upstream_first_body_byte_timeout"),
    ],
)
async def test_a_stall_before_the_first_record_fails_over(
    start_chain: StartChain, fault: str, advance: float, reason: str
) -> None:
    """Before the head, before init, and after it: only a record counts as a first byte."""
    chain = await start_chain(UPSTREAM_HEADER_TIMEOUT_MS="10000", UPSTREAM_FIRST_BODY_BYTE_TIMEOUT_MS="4000")
    chain.fault(fault, ONE)
    asking = fires(chain.ask(BOTH, stream=True))
    await chain.chutes.invoked.when(1)
    await chain.settle()
    chain.clock.advance(advance - 0.5)
    await chain.settle()
    assert not asking.called
    chain.clock.advance(0.5)
    response = await asking
    assert (text_of(response), response.header("x-chutes-autopilot-attempts")) == (said(THREE), "2")
    assert (await chain.gateway.metrics())[f'failover_reason_total{{reason="{reason}"}}'] == 1


async def test_a_stall_after_the_commit_cuts_the_answer(start_chain: StartChain) -> None:
    """Within the time a stream may be silent."""
    chain = await start_chain(STREAM_IDLE_TIMEOUT_MS="20000")
    chain.simulator.token_gap = 1.0
    chain.fault("stall", ONE, after=4)
    client, _ = await chain.begin(BOTH, encrypted=True)
    chain.clock.pump([1.0] * 30)
    assert b"[DONE]" not in await ended(client)


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize(
    ("fault", "after", "missing"),
    [
        ("record_dropped", 3, " a"),
        ("records_swapped", TOKENS + 1, None),
        ("forged_usage", 0, None),
        ("forged_usage", 5, None),
        ("tiny_writes", 0, None),
    ],
)
async def test_what_passes(chain: Chain, fault: str, after: int, missing: str | None, encrypted: bool) -> None:
    """A record left out is a limit of the protocol, and so is a swap that no counter shows; forgeries go nowhere."""
    chain.fault(fault, ONE, after=after)
    if encrypted:
        response, text = await chain.ask_sealed(BOTH, stream=True)
    else:
        response = await chain.ask(BOTH, stream=True)
        text = text_of(response)
    expected = said(ONE)
    assert (response.status, text) == (200, expected.replace(missing, "", 1) if missing else expected)
    assert b"simulated forgery" not in response.body
    assert b"999999" not in response.body
    assert await chain.refusals() == {}


@pytest.mark.parametrize(
    ("fault", "model", "stream", "served", "attempts", "code"),
    [
        ("nonces_expired", ONE, True, ONE, "1", "nonce_rejected"),
        ("instance_missing", THREE, True, THREE, "1", "instance_gone"),
        ("instance_missing", ONE, True, THREE, "2", "instance_gone"),
        ("instance_inactive", THREE, True, THREE, "1", "instance_gone"),
        ("key_exchange", THREE, False, THREE, "1", "instance_gone"),
        ("instance_failed", THREE, True, THREE, "1", "instance_failed"),
        ("relay_failed", ONE, True, THREE, "2", "instance_failed"),
        ("stream_only", THREE, False, THREE, "1", "stream_only"),
        ("chute_missing", ONE, True, THREE, "2", "chute_gone"),
        ("chute_disabled", ONE, True, THREE, "2", "chute_disabled"),
        ("reset", ONE, True, THREE, "2", None),
        ("garbage", ONE, True, THREE, "2", None),
        ("discovery_429", ONE, True, THREE, "2", "discovery_limited"),
        ("discovery_500", ONE, True, THREE, "2", "discovery_failed"),
        ("discovery_garbage", ONE, True, THREE, "2", "discovery_failed"),
        ("no_instances", ONE, True, THREE, "2", "no_instances"),
        ("discovery_bad_instance", THREE, True, THREE, "1", "bad_instance"),
        ("key_change", THREE, True, THREE, "1", None),
    ],
)
async def test_a_refusal_that_another_session_or_model_mends(
    chain: Chain, fault: str, model: str, stream: bool, served: str, attempts: str, code: str | None
) -> None:
    """Another nonce, another instance, or another model: the client sees an answer."""
    chain.fault(fault, model)
    response, text = await chain.ask_sealed(f"{model}, {THREE if model == ONE else ONE}", stream=stream)
    if fault == "discovery_429":  # no listing at all before the next minute
        assert (response.status, response.error["code"]) == (503, "chutes_e2ee_no_session")
        assert 1 <= int(response.header("retry-after") or 0) <= 62
        chain.clock.advance(63)
        response, text = await chain.ask_sealed(THREE, stream=stream)
        attempts = "1"
    assert (text, response.header("x-chutes-autopilot-attempts")) == (said(served), attempts)
    assert await chain.refusals() == ({} if code is None else {code: 1})


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("401", 502, "chutes_upstream_auth"),
        ("forbidden", 502, "chutes_upstream_auth"),
        ("quota", 429, "insufficient_quota"),
        ("429", 429, "rate_limit_exceeded"),
        ("unprocessable", 502, "chutes_e2ee_protocol"),
        ("content_refused", 400, "upstream_400"),
    ],
)
async def test_a_refusal_that_nothing_mends(chain: Chain, fault: str, status: int, code: str) -> None:
    """The client is told in our own words, and nobody else is asked."""
    chain.fault(fault, ONE, 2)
    for response in (await chain.ask(BOTH), (await chain.ask_sealed(BOTH))[0]):
        assert (response.status, response.error["code"]) == (status, code)
    assert len(chain.chutes.requests) == 2


async def test_instances_that_restart_are_met_with_their_new_keys(chain: Chain) -> None:
    """The next listing has them; nothing more is sealed to the former ones, which would open nowhere."""
    assert (await chain.ask(ONE)).status == 200
    chain.fault("key_change", ONE)
    chain.clock.advance(56)
    assert text_of(await chain.ask(ONE)) == said(ONE)
    assert not chain.simulator.faults.waiting()
    assert [bool(seen.body) for seen in chain.chutes.requests] == [True, True]


async def test_a_listing_that_does_not_come_is_waited_for_so_long(start_chain: StartChain) -> None:
    """Then the next model is tried; the listing's own time is longer."""
    chain = await start_chain(CHUTES_E2EE_DISCOVERY_WAIT_MS="3000")
    chain.fault("discovery_silent", ONE)
    asking = fires(chain.ask(BOTH))
    await chain.chutes.discovered.when(1)
    chain.clock.advance(2.9)
    await chain.settle()
    assert not asking.called
    chain.clock.advance(0.2)
    assert text_of(await asking) == said(THREE)
