"""CHUTES_ATTESTATION over the whole chain: who may be sent a request, and what a lost verdict costs."""

import json
from hashlib import sha256

import pytest
from chain_peers import MODELS, ONE, THREE, Chain, StartChain, said, simulated, text_of

ALIAS = "chutesai/AutoPilot"
KNOWN = 4
"""Instances with keys, three of the chute that the alias would choose first."""

AT_BINDING = {
    "evidence_key": "binding",
    "evidence_nonce": "binding",
    "evidence_debug": "debug",
    "evidence_certificate": "certificate",
}
"""Faults of evidence that show without anybody's signature, and why they are refused."""

AT_QUOTE = AT_BINDING | {
    "evidence_measurement": "measurements",
    "evidence_signature": "quote_signature",
    "evidence_root": "root",
    "evidence_enclave": "qe_identity",
    "evidence_expired": "validity",
}


async def refused_for_want_of_a_verdict(chain: Chain, model: str) -> bool:
    response = await chain.ask(model)
    if response.status == 200:
        return False
    assert (response.status, response.error["code"]) == (503, "no_attested_candidate")
    assert int(response.header("retry-after") or 0) > 0
    return True


@pytest.mark.parametrize("level", ["binding", "quote"])
async def test_nobody_is_sent_a_request_before_its_evidence_stood(start_chain: StartChain, level: str) -> None:
    """Evidence is not waited for: until it is there a client is told to come again, after that it is served."""
    chain = await start_chain(MODELS[1:], CHUTES_ATTESTATION=level)
    for model in (ALIAS, THREE, f"{ONE}, {THREE}"):
        assert await refused_for_want_of_a_verdict(chain, model)
    assert not chain.chutes.requests
    assert await chain.verify(KNOWN) == (KNOWN, 0)
    response, text = await chain.ask_sealed(ALIAS, stream=True)
    assert (text, response.header("x-chutes-autopilot-attempts")) == (said(THREE), "1")


@pytest.mark.parametrize(
    ("level", "fault", "reason"),
    [("binding", *row) for row in AT_BINDING.items()] + [("quote", *row) for row in AT_QUOTE.items()],
)
async def test_evidence_that_does_not_stand(start_chain: StartChain, level: str, fault: str, reason: str) -> None:
    """The instance is never asked, the alias chooses verified models alone, and the chute by itself gets 503."""
    chain = await start_chain(MODELS[1:], CHUTES_ATTESTATION=level)
    chain.fault(fault, THREE, None)
    assert await chain.verify(KNOWN) == (1, 3)
    checked = {name: n for name, n in (await chain.gateway.metrics()).items() if name.startswith("evidence_checked")}
    assert checked == {
        f'evidence_checked_total{{outcome="{reason}"}}': 3,
        'evidence_checked_total{outcome="verified"}': 1,
    }
    response = await chain.ask(ALIAS)
    assert (text_of(response), response.header("x-chutes-autopilot-attempts")) == (said(ONE), "1")
    assert text_of(await chain.ask(f"{THREE}, {ONE}")) == said(ONE)
    assert await refused_for_want_of_a_verdict(chain, THREE)
    assert {seen.chute_id for seen in chain.chutes.requests} == {chain.simulator.models[1].chute_id}


async def test_an_item_without_a_verdict_uses_up_no_attempt(start_chain: StartChain) -> None:
    """It is named, and not even looked at where the client's list has a verified one."""
    chain = await start_chain(MODELS[1:], CHUTES_ATTESTATION="binding", MAX_FAILOVER_ATTEMPTS="1")
    chain.fault("evidence_key", THREE, None)
    assert await chain.verify(KNOWN) == (1, 3)
    response = await chain.ask(f"{THREE}, {ONE}")
    assert text_of(response) == said(ONE)
    assert response.header("x-chutes-autopilot-skipped") == f"{THREE}=no_verdict"


@pytest.mark.parametrize("fault", sorted(set(AT_QUOTE) - set(AT_BINDING)))
async def test_what_binding_does_not_look_at(start_chain: StartChain, fault: str) -> None:
    """A quote that nobody signed passes there, as its documentation says."""
    chain = await start_chain(MODELS[1:], CHUTES_ATTESTATION="binding")
    chain.fault(fault, "*", None)
    assert await chain.verify(KNOWN) == (KNOWN, 0)


async def test_without_any_verified_instance_nobody_is_asked(start_chain: StartChain) -> None:
    """503 for alias, list and model, encrypted or not."""
    chain = await start_chain(MODELS[1:], CHUTES_ATTESTATION="quote")
    chain.fault("evidence_key", "*", None)
    assert await chain.verify(KNOWN) == (0, KNOWN)
    for model in (ALIAS, f"{ONE}, {THREE}", ONE):
        assert await refused_for_want_of_a_verdict(chain, model)
        response, _ = await chain.ask_sealed(model)
        assert (response.status, response.error["code"]) == (503, "no_attested_candidate")
    assert not chain.chutes.requests


async def test_a_new_key_has_no_verdict(start_chain: StartChain) -> None:
    """An instance that restarted is refused until its new key's evidence stood; so is one whose key never stood."""
    chain = await start_chain(MODELS[2:], CHUTES_ATTESTATION="quote")

    def known() -> object:
        return chain.verifier.table.of(MODELS[2].chute_id)[0]

    chain.fault("evidence_key", ONE)
    assert await chain.verify(1) == (0, 1)
    await chain.pass_time(50)
    assert await refused_for_want_of_a_verdict(chain, ONE)  # for good, whatever its evidence says now
    before = known()
    chain.fault("key_change", ONE)
    await chain.pass_time(56)  # its nonces expire, so there is a listing
    await chain.wait_for(lambda: known() is not before)
    assert await chain.verify(1) == (1, 0)
    assert text_of(await chain.ask(ONE)) == said(ONE)
    chain.fault("key_change", ONE)
    while not await refused_for_want_of_a_verdict(chain, ONE):
        pass  # each request takes a nonce, until there is a listing
    assert not chain.simulator.faults.waiting()
    await chain.pass_time(16)
    await chain.wait_for(lambda: chain.verifier.table.counts()[1])
    assert text_of(await chain.ask(ONE)) == said(ONE)


async def test_the_scarce_listing_is_not_asked_for_what_has_no_verdict(start_chain: StartChain) -> None:
    """However often clients ask for a chute whose evidence does not stand."""
    chain = await start_chain(MODELS[2:], CHUTES_ATTESTATION="quote")
    chain.fault("evidence_key", ONE)
    assert await chain.verify(1) == (0, 1)
    for _ in range(30):
        assert await refused_for_want_of_a_verdict(chain, ONE)
        await chain.pass_time(1)
    assert chain.chutes.discovered.count == 1


async def test_a_verified_model_is_found_behind_others_that_cannot_be(start_chain: StartChain) -> None:
    """Without any request: chutes that cannot be listed or attested at the top of the ranking do not bar the way."""
    names = [f"peer/{number}-Open" for number in range(3)]
    models = (*MODELS[:1], *(simulated(name, 5) for name in names), *MODELS[2:])
    chain = await start_chain(models, CHUTES_ATTESTATION="quote")
    for _ in range(120):
        await chain.pass_time(1)
        await chain.settle()
        if chain.verifier.table.counts()[1] == 1:
            break
    assert text_of(await chain.ask(ALIAS)) == said(ONE)


@pytest.mark.parametrize("level", ["off", "binding", "quote"])
async def test_a_receipt_says_whom_the_request_was_sealed_to(start_chain: StartChain, level: str) -> None:
    """Chute, instance, the hash of its key, and the level that its verdict is of."""
    chain = await start_chain(MODELS[2:], CHUTES_ATTESTATION=level)
    if level != "off":
        assert await chain.verify(1) == (1, 0)
    response, _ = await chain.ask_sealed(ONE)
    answer_id = json.loads(response.body)["id"]
    receipt = json.loads((await chain.caller.get(f"/v1/receipts/{answer_id}")).body)["receipt"]
    (instance,) = chain.chutes.fleet.of(MODELS[2])
    key = instance.private.public_key().public_bytes_raw()
    assert (receipt["chute_id"], receipt["instance_id"]) == (MODELS[2].chute_id, instance.instance_id)
    assert (receipt["instance_key_sha256"], receipt["attestation"]) == (sha256(key).hexdigest(), level)
    assert (receipt["evidence_sha256"] is None) is (level == "off")
