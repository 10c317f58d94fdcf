"""What each fault of the sealed side looks like on the wire."""

import gzip
import json
import zlib
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from sealed_client import Reply, SealedPlatform, open_blob

from chutes_autopilot.demo.catalog import simulated_models
from chutes_autopilot.demo.chute_answers import BOMB_MEBIBYTES, FORGERY, TINY_BYTES
from chutes_autopilot.demo.control import ControlRefused, add_fault
from chutes_autopilot.demo.faults import BEFALLS, PLACED, FaultBoard, FaultKind, Occasion

MODEL = "demo-labs/Aurora-32B-TEE"
TOKENS = 5
EVENTS = TOKENS + 4
"""Role, tokens, finish reason, usage, ``[DONE]``."""


async def streamed(sealed: SealedPlatform, fault: str, after: int = 0) -> Reply:
    """A short stream that meets the fault."""
    sealed.simulator.faults.add(fault, MODEL, 1, after=after)
    return await sealed.stream(MODEL, await sealed.instance(MODEL), n_tokens=TOKENS)


async def whole(sealed: SealedPlatform, fault: str) -> Reply:
    sealed.simulator.faults.add(fault, MODEL, 1)
    return await sealed.invoke(MODEL, await sealed.instance(MODEL))


def counted(reply: Reply) -> list[Any]:
    """The completion tokens of each inner chunk, and the ``[DONE]``."""
    return [chunk if chunk == "[DONE]" else chunk["usage"]["completion_tokens"] for chunk in reply.chunks()]


def in_order(tokens: int = TOKENS) -> list[Any]:
    return [*range(tokens + 1), tokens, tokens, "[DONE]"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("nonces_expired", 403, "nonce"),
        ("forbidden", 403, "Forbidden"),
        ("quota", 429, "quota"),
        ("instance_full", 429, "Instance is at maximum capacity, try again later"),
        ("instance_missing", 404, "Instance not found"),
        ("instance_inactive", 410, "Instance is no longer active"),
        ("instance_moved", 400, "Instance does not belong to the specified chute"),
        ("chute_missing", 404, "Chute not found"),
        ("chute_disabled", 503, "This chute is currently disabled."),
        ("unprocessable", 422, "Field required"),
        ("content_refused", 400, ""),
        ("key_exchange", 502, "Instance requires key exchange"),
        ("instance_failed", 500, "Instance returned status 500"),
        ("relay_failed", 500, "Internal error during E2E invocation"),
        ("503", 503, "No instances available"),
        ("429", 429, "Infrastructure is at maximum capacity"),
        ("401", 401, "Invalid token."),
    ],
)
async def test_a_fault_that_refuses(sealed: SealedPlatform, fault: str, status: int, words: str, stream: bool) -> None:
    """The one request that takes it gets status and detail, the next one its answer."""
    instance = await sealed.instance(MODEL)
    sealed.simulator.faults.add(fault, MODEL, 1)
    reply = await sealed.invoke(MODEL, instance, fields={"stream": stream})
    assert (reply.status, reply.content_type) == (status, "application/json")
    assert words in json.dumps(reply.detail)
    expected = 403 if fault == "nonces_expired" else 200
    assert (await sealed.invoke(MODEL, instance, fields={"stream": stream})).status == expected


async def test_an_instance_that_only_streams_refuses_whole_answers(sealed: SealedPlatform) -> None:
    """A stream passes it by; the fault waits for a request that is none."""
    instance = await sealed.instance(MODEL)
    sealed.simulator.faults.add("stream_only", MODEL)
    assert (await sealed.stream(MODEL, instance)).status == 200
    reply = await sealed.invoke(MODEL, instance)
    assert reply.status == 400
    assert reply.detail.startswith("Non-streaming E2E requests require chutes >= 0.5.27 ")


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("paced", [False, True])
async def test_a_stall_holds_the_stream_after_so_many_events(sealed: SealedPlatform, after: int, paced: bool) -> None:
    """Init and those events arrive whole, then nothing, however long; the simulator sees the client leave."""
    if paced:
        sealed.simulator.token_gap = 1.0
    instance = await sealed.instance(MODEL)
    sealed.simulator.faults.add("stall", MODEL, after=after)
    wire, private = await sealed.start(MODEL, instance, fields={"stream": True, "n_tokens": TOKENS})
    await wire.until(b'"e2e_init"')
    sealed.clock.pump([1.0] * 60)
    await sealed.get("/v1/models")  # whatever was on its way has arrived by now
    reply = Reply(wire.received, private)
    assert not reply.complete
    assert reply.kinds()[0] == "e2e_init"
    assert [chunk["usage"]["completion_tokens"] for chunk in reply.chunks()] == list(range(after))
    assert sealed.simulator.open_streams == 1
    wire.transport.abortConnection()
    await sealed.simulator.when_disconnected(1)


@pytest.mark.parametrize("fault", ["silent_head", "silent_body"])
async def test_a_stall_before_init_is_silence(sealed: SealedPlatform, fault: str) -> None:
    """The silence that chat requests know comes before the first sealed event too."""
    instance = await sealed.instance(MODEL)
    sealed.simulator.faults.add(fault, MODEL)
    wire, _ = await sealed.start(MODEL, instance, fields={"stream": True})
    await sealed.simulator.chutes.invoked.when(1)
    if fault == "silent_body":
        await wire.until(b"\r\n\r\n")
    sealed.clock.advance(3600)
    await sealed.get("/v1/models")
    assert wire.received.partition(b"\r\n\r\n")[2] == b""
    assert bool(wire.received) is (fault == "silent_body")
    wire.transport.abortConnection()
    await sealed.simulator.when_disconnected(1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_closed_connection(sealed: SealedPlatform, stream: bool) -> None:
    """Cut in the middle, the answer is incomplete; cut before, there is a head alone; reset, not even that."""
    instance = await sealed.instance(MODEL)
    for fault in ("cut", "cut_before_body"):
        sealed.simulator.faults.add(fault, MODEL, 1)
        reply = await sealed.invoke(MODEL, instance, fields={"stream": stream})
        assert (reply.status, reply.complete, bool(reply.body)) == (200, False, fault == "cut")
        if stream and fault == "cut":
            assert counted(reply) == [0, 1, 2, 3]
    sealed.simulator.faults.add("reset", MODEL, 1)
    wire, _ = await sealed.start(MODEL, instance, fields={"stream": stream})
    await wire.ended
    assert wire.received == b""


async def test_swapped_records_show_in_the_usage_only(sealed: SealedPlatform) -> None:
    """Two chunks change places; at the end, where usage stands still, nothing shows it."""
    assert counted(await streamed(sealed, "records_swapped")) == [1, 0, 2, 3, 4, 5, 5, 5, "[DONE]"]
    assert counted(await streamed(sealed, "records_swapped", 3)) == [0, 1, 2, 4, 3, 5, 5, 5, "[DONE]"]
    late = await streamed(sealed, "records_swapped", TOKENS + 1)
    assert counted(late) == in_order()
    assert [bool(chunk["choices"]) for chunk in late.chunks()[-3:-1]] == [False, True]
    assert counted(await streamed(sealed, "records_swapped", EVENTS - 1)) == in_order()


@pytest.mark.parametrize("after", [0, 4])
async def test_a_repeated_record_has_the_same_bytes(sealed: SealedPlatform, after: int) -> None:
    """The record comes twice, nonce and all; no other does."""
    records = (await streamed(sealed, "record_repeated", after)).records()
    assert len(records) == len(set(records)) + 1


async def test_a_dropped_record_leaves_no_trace(sealed: SealedPlatform) -> None:
    """The stream is whole in every other respect; without the last record it has no end."""
    assert counted(await streamed(sealed, "record_dropped", 2)) == [0, 1, 3, 4, 5, 5, 5, "[DONE]"]
    assert counted(await streamed(sealed, "record_dropped", EVENTS - 1)) == in_order()[:-1]


@pytest.mark.parametrize("after", [0, 4])
async def test_a_truncated_stream_ends_cleanly_without_its_end(sealed: SealedPlatform, after: int) -> None:
    """HTTP is complete, the inner stream is not."""
    reply = await streamed(sealed, "truncated", after)
    assert reply.complete
    assert counted(reply) == list(range(after))
    assert reply.kinds()[0] == "e2e_init"


@pytest.mark.parametrize("after", [0, 4])
async def test_a_bad_tag_in_a_stream(sealed: SealedPlatform, after: int) -> None:
    """Exactly one record does not open."""
    reply = await streamed(sealed, "bad_tag", after)
    cipher = reply.stream_cipher()
    failed = []
    for place, record in enumerate(reply.records()):
        try:
            cipher.decrypt(record[:12], record[12:], None)
        except InvalidTag:
            failed.append(place)
    assert failed == [2 * after]


async def test_faults_of_init(sealed: SealedPlatform) -> None:
    """There is none, a second one, one after the first record, or one that is too short."""
    assert "e2e_init" not in (await streamed(sealed, "no_init")).kinds()
    second = await streamed(sealed, "second_init")
    assert second.kinds()[:3] == ["e2e_init", "e2e_init", "e2e"]
    assert len({event["e2e_init"] for event in second.outer() if "e2e_init" in event}) == 2
    assert (await streamed(sealed, "second_init", 1)).kinds()[:4] == ["e2e_init", "e2e", "e2e", "e2e_init"]
    early = await streamed(sealed, "record_before_init")
    assert early.kinds()[:3] == ["e2e", "e2e_init", "e2e"]
    assert counted(early) == in_order()
    assert len((await streamed(sealed, "short_blob")).outer()[0]["e2e_init"]) == 1336  # base64 of 1000 bytes


@pytest.mark.parametrize("after", [0, 4])
async def test_a_forged_usage_event_is_in_clear_between_the_records(sealed: SealedPlatform, after: int) -> None:
    """It carries content and a tool call that no instance said; the records are all there."""
    reply = await streamed(sealed, "forged_usage", after)
    (forged,) = [event for event in reply.outer() if "choices" in event]
    assert "usage" in forged
    delta = forged["choices"][0]["delta"]
    assert (delta["content"], delta["tool_calls"][0]["function"]["name"]) == (FORGERY, FORGERY)
    assert reply.outer().index(forged) == 1 + 2 * after
    assert counted(reply) == in_order()


@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("fault", ["clear_error", "clear_done", "garbage_line"])
async def test_a_clear_event_in_the_middle(sealed: SealedPlatform, fault: str, after: int) -> None:
    """An error and an end in clear are the last thing; after a line of garbage the records go on."""
    reply = await streamed(sealed, fault, after)
    kinds = reply.kinds()
    expected = {"clear_error": "e2e_error", "clear_done": "[DONE]", "garbage_line": "simulated garbage, not JSON"}[
        fault
    ]
    assert kinds[: 2 * after + 2] == ["e2e_init", *["e2e"] * 2 * after, expected]
    assert reply.complete
    if fault != "garbage_line":
        assert len(kinds) == 2 * after + 2
    else:
        assert set(kinds[2 * after + 2 :]) == {"e2e"}


async def test_inner_garbage_opens_and_is_no_json(sealed: SealedPlatform) -> None:
    """The seal is good, what is in it is not."""
    assert (await streamed(sealed, "inner_garbage", 1)).chunks()[1] == "simulated garbage, not JSON"
    reply = await whole(sealed, "inner_garbage")
    assert gzip.decompress(open_blob(reply.body, reply.private)) == b"simulated garbage, not JSON"


async def test_an_engines_error_comes_sealed(sealed: SealedPlatform) -> None:
    """The faults of an engine's stream are inside the records, as the stream itself is."""
    first = (await streamed(sealed, "error_event_first")).chunks()
    assert "error" in first[0]
    tail = await streamed(sealed, "error_tail")
    assert tail.lines()[-1].startswith(b'{"error":')
    assert b"Unhandled" not in tail.body


async def test_tiny_writes_are_complete_answers(sealed: SealedPlatform) -> None:
    """Every chunk of the body has a few bytes, and together they are the answer, in both forms."""
    reply = await streamed(sealed, "tiny_writes")
    assert counted(reply) == in_order()
    sizes = [line for line in reply.raw.partition(b"\r\n\r\n")[2].split(b"\r\n")[::2] if line]
    assert {int(size, 16) for size in sizes} <= set(range(TINY_BYTES + 1))
    answer = await whole(sealed, "tiny_writes")
    assert answer.response.headers["Transfer-Encoding"] == "chunked"
    assert answer.opened()["object"] == "chat.completion"


async def test_a_whole_answer_whose_seal_is_broken(sealed: SealedPlatform) -> None:
    """A changed byte does not open; a short blob has not even room for the encapsulated secret."""
    bad = await whole(sealed, "bad_tag")
    with pytest.raises(InvalidTag):
        open_blob(bad.body, bad.private)
    assert len((await whole(sealed, "short_blob")).body) == 1000


async def test_a_whole_answer_whose_gzip_is_hostile(sealed: SealedPlatform) -> None:
    """A bomb, an unfinished member, and a member after the member, each in a good seal."""

    def inflated(reply: Reply) -> tuple[bytes, Any]:
        inflate = zlib.decompressobj(wbits=31)
        return inflate.decompress(open_blob(reply.body, reply.private)), inflate

    bomb = await whole(sealed, "gzip_bomb")
    assert len(bomb.body) < 200_000
    zeros, inflate = inflated(bomb)
    assert (len(zeros), inflate.eof, inflate.unused_data) == (BOMB_MEBIBYTES * 2**20, True, b"")
    cut, inflate = inflated(await whole(sealed, "gzip_cut"))
    assert json.loads(cut)
    assert not inflate.eof
    first, inflate = inflated(await whole(sealed, "second_gzip_member"))
    assert json.loads(first)["object"] == "chat.completion"
    assert gzip.decompress(inflate.unused_data) == b"{}"


async def test_a_json_envelope_in_the_place_of_a_blob(sealed: SealedPlatform) -> None:
    """The blob is there, in base64 within JSON."""
    reply = await whole(sealed, "json_envelope")
    assert (reply.status, reply.content_type) == (200, "application/json")
    assert set(json.loads(reply.body)) == {"e2e"}


async def test_faults_of_the_listing(sealed: SealedPlatform) -> None:
    """Limited, failed, no JSON, without instances, or with one bad instance among good ones; a chat takes none."""
    for fault, status in (("discovery_429", 429), ("discovery_500", 500), ("no_instances", 404)):
        sealed.simulator.faults.add(fault, MODEL, 1)
        assert (await sealed.discover("demo-labs/Aurora-235B-A22B-TEE")).status == 200
        assert (await sealed.discover(MODEL)).status == status
    sealed.clock.advance(60)
    sealed.simulator.faults.add("discovery_garbage", MODEL, 1)
    garbage = await sealed.discover(MODEL)
    assert garbage.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(garbage.body)
    sealed.simulator.faults.add("discovery_bad_instance", MODEL, 1)
    keys = [instance["e2e_pubkey"] for instance in json.loads((await sealed.discover(MODEL)).body)["instances"]]
    assert [len(key) == 1580 for key in keys] == [False, True, True, True, True]


async def test_a_silent_listing_lasts_until_the_client_leaves(sealed: SealedPlatform) -> None:
    """Nothing comes, not even a head."""
    sealed.simulator.faults.add("discovery_silent", MODEL)
    wire = await sealed.send("GET", f"/e2e/instances/{sealed.model(MODEL).chute_id}")
    await sealed.simulator.chutes.discovered.when(1)
    sealed.clock.advance(70)
    await sealed.get("/v1/models")
    assert wire.received == b""


async def test_after_a_key_change_the_former_key_opens_nothing(sealed: SealedPlatform) -> None:
    """The instances keep their names; what is sealed to a former key is refused by the instance."""
    before = json.loads((await sealed.discover(MODEL)).body)["instances"]
    sealed.simulator.faults.add("key_change", MODEL, 1)
    after = json.loads((await sealed.discover(MODEL)).body)["instances"]
    keys = {instance["e2e_pubkey"] for instance in before}
    assert keys.isdisjoint(instance["e2e_pubkey"] for instance in after)
    assert (await sealed.invoke(MODEL, before[0])).status == 400
    assert (await sealed.invoke(MODEL, after[0])).status == 200


async def test_sealed_faults_are_asked_for_over_the_control_path(sealed: SealedPlatform) -> None:
    """The kind, the model and the event after which it strikes can be put up and seen."""
    asked = {"fault": "bad_tag", "model": MODEL, "requests": 1, "after": 2}
    wire = await sealed.send("POST", "/_simulator/faults", json.dumps(asked).encode())
    await wire.ended
    assert json.loads(Reply(wire.received).body) == {"simulated": True, **asked}
    assert sealed.simulator.faults.waiting()[0].after == 2


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"fault": "503", "after": 1}, "after is a whole number and belongs to"),
        ({"fault": "gzip_bomb", "after": 1}, "after is a whole number and belongs to"),
        ({"fault": "bad_tag", "after": True}, "after is a whole number and belongs to"),
        ({"fault": "bad_tag", "after": -1}, "after is -1"),
    ],
)
def test_a_wrong_place_is_told_what_is_allowed(asked: dict[str, Any], why: str) -> None:
    """Only faults that strike at an event take the number of events before it."""
    with pytest.raises(ControlRefused) as refused:
        add_fault(FaultBoard(()), json.dumps(asked).encode())
    assert why in str(refused.value)


def test_a_fault_waits_for_a_request_that_it_fits() -> None:
    """Every kind befalls something; a request takes what fits it and leaves the rest standing."""
    model = simulated_models()[0].name
    board = FaultBoard({model})
    assert set().union(*BEFALLS.values()) == set(FaultKind)
    assert PLACED.issubset(BEFALLS[Occasion.STREAM])
    for kind in ("evidence_key", "discovery_429", "gzip_bomb", "no_init", "503"):
        board.add(kind, model)
    taken = {occasion: board.take(model, occasion) for occasion in Occasion}
    assert {occasion: fault and fault.kind for occasion, fault in taken.items()} == {
        Occasion.CHAT: "503",
        Occasion.STREAM: "503",
        Occasion.WHOLE: "503",
        Occasion.DISCOVERY: "discovery_429",
        Occasion.EVIDENCE: "evidence_key",
    }
    assert [fault.kind for fault in board.waiting()] == ["evidence_key", "discovery_429", "503"]
