"""The simulated sealed side as a gateway sees it: the listing, its nonces and its limit, and sealed answers."""

import gzip
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from sealed_client import SealedPlatform, derived, open_blob, seal_member

from chutes_autopilot.demo.chute_fleet import MinuteLimit, NonceBook
from chutes_autopilot.demo.chute_sealing import NotOpened, gzip_bomb, open_request
from chutes_autopilot.demo.completions import Completion, stream_pieces

MODEL = "demo-labs/Aurora-32B-TEE"
OTHER = "sample-ai/Fjord-20B"
OLD = "example-org/Kestrel-405B"
COLD = "example-org/Saguaro-Math-72B"
SMALL = "fictional/Ocelot-2-Mini"
CHUNK_KEYS = {"id", "object", "created", "model", "choices", "usage"}


async def test_the_listing_names_five_instances_with_ten_nonces_each(sealed: SealedPlatform) -> None:
    """Known instance ids, keys that load, fifty different nonces, and the time they are good for."""
    sealed.clock.advance(1000.5)
    reply = await sealed.discover(MODEL)
    answer = json.loads(reply.body)
    assert (answer["nonce_expires_in"], answer["nonce_expires_at"]) == (60, 1060)
    names = [instance["instance_id"] for instance in answer["instances"]]
    listing = json.loads((await sealed.get("/chutes/?limit=1")).body)["items"][0]
    assert len(set(names)) == 5
    assert set(names) <= {instance["instance_id"] for instance in listing["instances"]}
    keys = {b64decode(instance["e2e_pubkey"], validate=True) for instance in answer["instances"]}
    assert len({MLKEM768PublicKey.from_public_bytes(key).public_bytes_raw() for key in keys}) == 5
    nonces = [nonce for instance in answer["instances"] for nonce in instance["nonces"]]
    assert len(nonces) == len(set(nonces)) == 50
    assert len(json.loads((await sealed.discover(SMALL)).body)["instances"]) == 1


@pytest.mark.parametrize(
    ("name", "detail"),
    [(COLD, "No active instances found for this chute"), (OLD, "No E2E-capable instances available")],
)
async def test_a_chute_without_sealable_instances_is_404(sealed: SealedPlatform, name: str, detail: str) -> None:
    """Cold chutes and those of an older runtime have no instances to seal to, and say so in different words."""
    reply = await sealed.discover(name)
    assert (reply.status, reply.detail) == (404, detail)
    unknown = await sealed.get("/e2e/instances/nobody")
    assert (unknown.status, unknown.detail) == (404, "Chute not found")


async def test_ten_listings_a_clock_minute_for_everybody_together(sealed: SealedPlatform) -> None:
    """The eleventh call of a clock minute is refused, whoever asks for whatever chute, and the next minute is free."""
    sealed.clock.advance(119)
    for call in range(10):
        reply = await sealed.discover((MODEL, OTHER, OLD)[call % 3], f"cpk_{call}")
        assert reply.status in (200, 404)
    assert (await sealed.discover(MODEL)).status == 429
    sealed.clock.advance(1)
    assert (await sealed.discover(MODEL)).status == 200
    assert sealed.simulator.chutes.discovery_limit.refused == 1
    assert sealed.simulator.chutes.discovered.count == 12


@pytest.mark.parametrize("key", [None, "", "cpk_refused_1"])
async def test_without_a_good_key_nothing_is_served(sealed: SealedPlatform, key: str | None) -> None:
    """Listing, invocation and evidence are 401, and the refused listing takes nothing of the shared limit."""
    chute_id = sealed.model(MODEL).chute_id
    for _ in range(11):
        assert (await sealed.discover(MODEL, key)).status == 401
    assert (await sealed.get(f"/chutes/{chute_id}/evidence?nonce={'0' * 64}", key)).status == 401
    wire = await sealed.send("POST", "/e2e/invoke", b"x", key)
    await wire.ended
    assert b" 401 " in wire.received.split(b"\r\n")[0]


async def test_a_whole_answer_is_sealed_to_the_requests_key(sealed: SealedPlatform) -> None:
    """Only the key in the request opens the answer, which is the completion that it would be in clear."""
    instance = await sealed.instance(MODEL)
    reply = await sealed.invoke(MODEL, instance, fields={"n_tokens": 20})
    assert (reply.status, reply.content_type) == (200, "application/octet-stream")
    answer = reply.opened()
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
    assert answer["usage"]["completion_tokens"] == 20
    assert b"simulated answer" not in reply.body
    with pytest.raises(InvalidTag):
        open_blob(reply.body, MLKEM768PrivateKey.generate())


async def test_a_stream_is_sealed_line_by_line_with_usage_in_every_chunk(sealed: SealedPlatform) -> None:
    """Init, one record for each line, clear usage now and then; the records make the stream that there is in clear."""
    instance = await sealed.instance(MODEL)
    reply = await sealed.stream(MODEL, instance, n_tokens=20, stream_options={"include_usage": False})
    assert (reply.status, reply.content_type) == (200, "text/event-stream; charset=utf-8")
    kinds = reply.kinds()
    assert kinds[0] == "e2e_init"
    assert kinds.count("e2e_init") == 1
    assert set(kinds[1:]) == {"e2e", "usage"}
    assert kinds.count("usage") == 2
    *chunks, done = reply.chunks()
    assert done == "[DONE]"
    first = chunks[0]
    prompt = first["usage"]["prompt_tokens"]
    expected = Completion(first["id"], MODEL, first["created"], 20, prompt)
    assert b"".join(reply.lines()) == b"".join(stream_pieces(expected))
    assert {line.endswith(b"\n") and line.count(b"\n") for line in reply.lines()} == {1}
    assert all(set(chunk) >= CHUNK_KEYS for chunk in chunks)
    assert chunks[-1]["choices"] == []
    nonces = [record[:12] for record in reply.records()]
    assert len(nonces) == len(set(nonces))
    assert b"simulated answer" not in reply.body
    assert b"choices" not in reply.body


@pytest.mark.parametrize("stream", [True, False])
async def test_the_instance_obeys_the_body_and_the_api_the_header(sealed: SealedPlatform, stream: bool) -> None:
    """Where the two differ, the content type is the header's and the content the body's."""
    instance = await sealed.instance(MODEL)
    fields = {"stream": stream, "n_tokens": 3}
    reply = await sealed.invoke(MODEL, instance, header_stream=not stream, fields=fields)
    if stream:
        assert reply.content_type == "application/octet-stream"
        assert reply.chunks()[-1] == "[DONE]"
    else:
        assert reply.content_type == "text/event-stream; charset=utf-8"
        assert reply.opened()["usage"]["completion_tokens"] == 3


async def test_what_arrived_is_kept_in_memory_and_shown_without_its_content(sealed: SealedPlatform) -> None:
    """The simulator holds the opened JSON and the headers; the control path shows sizes and headers only."""
    instance = await sealed.instance(MODEL)
    used = instance["nonces"][0]
    await sealed.invoke(MODEL, instance, fields={"user": "marker"})
    await sealed.invoke(MODEL, instance, body=b"x" * 2000)
    opened, unopened = sealed.simulator.chutes.requests
    assert json.loads(opened.body)["user"] == "marker"
    assert (opened.chute_id, opened.instance_id, opened.nonce) == (
        sealed.model(MODEL).chute_id,
        instance["instance_id"],
        used,
    )
    assert opened.sealed_size > 2000 + 16
    assert (unopened.body, unopened.sealed_size) == (b"", 2000)
    shown = await sealed.seen()
    assert [entry["opened"] for entry in shown["requests"]] == [True, False]
    assert [entry["sealed_size"] for entry in shown["requests"]] == [opened.sealed_size, 2000]
    assert ["X-E2E-Nonce", used] in shown["requests"][0]["headers"]
    assert (shown["invoked"], shown["discovered"], shown["nonces_refused"]) == (2, 1, 0)
    assert "marker" not in json.dumps(shown)
    assert "hush" not in repr(sealed.simulator.chutes)


async def test_a_nonce_serves_one_request_whatever_comes_of_it(sealed: SealedPlatform) -> None:
    """Used once it is gone, also where the request failed; an unknown one was never there."""
    instance = await sealed.instance(MODEL)
    nonces = list(instance["nonces"])
    assert (await sealed.invoke(MODEL, instance)).status == 200
    assert (await sealed.invoke(MODEL, instance, body=b"")).status == 400
    instance["nonces"][:] = [*nonces[:2], "never_given"]
    for _ in range(3):
        reply = await sealed.invoke(MODEL, instance)
        assert reply.status == 403
        assert "nonce" in reply.detail.lower()
    assert sealed.simulator.chutes.nonces.refused == 3


async def test_a_nonce_belongs_to_an_account_and_a_chute(sealed: SealedPlatform) -> None:
    """With another key, or for another chute, it is refused, and stays good where it belongs."""
    instance = await sealed.instance(MODEL)
    nonce = instance["nonces"][0]
    await sealed.discover(OTHER)
    assert (await sealed.invoke(MODEL, instance, key="cpk_another")).status == 403
    instance["nonces"].insert(0, nonce)
    assert (await sealed.invoke(OTHER, instance)).status == 403
    instance["nonces"].insert(0, nonce)
    assert (await sealed.invoke(MODEL, instance)).status == 200


@pytest.mark.parametrize(
    ("how", "status", "detail"),
    [
        ({"body": b""}, 400, "Empty request body"),
        ({"X_Instance_Id": "nobody"}, 404, "Instance not found"),
        ({"X_Instance_Id": "other"}, 400, "Instance does not belong to the specified chute"),
        ({"key": "cpk_unpaid"}, 402, "Quota exceeded and account balance is $0.0, please pay with fiat or send tao"),
        ({"body": b"x" * 3000}, 400, None),
        ({"fields": {"model": OTHER}}, 400, None),
        ({"fields": {"model": "chutesai/AutoPilot"}}, 400, None),
        ({"fields": {"e2e_response_pk": "AAAA"}}, 400, None),
        ({"fields": {"max_tokens": 0}}, 400, None),
        ({"X_E2E_Path": "/v1/completions"}, 400, None),
    ],
)
async def test_a_refusal_has_its_status_and_words(
    sealed: SealedPlatform, how: dict[str, Any], status: int, detail: str | None
) -> None:
    """The API's refusals have their texts; the instance's own cannot be read by whoever is not the API."""
    key = how.get("key", "cpk_demo")
    instance = json.loads((await sealed.discover(MODEL, key)).body)["instances"][0]
    if how.get("X_Instance_Id") == "other":
        how = {"X_Instance_Id": (await sealed.instance(OTHER))["instance_id"]}
    reply = await sealed.invoke(MODEL, instance, **how)
    assert reply.status == status
    if detail is None:
        assert len(b64decode(reply.detail, validate=True)) == 60
    else:
        assert reply.detail == detail


@pytest.mark.parametrize("missing", ["X_Chute_Id", "X_Instance_Id", "X_E2E_Nonce", "X_E2E_Stream"])
async def test_a_missing_header_is_422(sealed: SealedPlatform, missing: str) -> None:
    """The detail names the header, as the platform's framework does."""
    instance = await sealed.instance(MODEL)
    reply = await sealed.invoke(MODEL, instance, **{missing: ""})
    assert (reply.status, reply.detail[0]["loc"]) == (422, ["header", missing.lower().replace("_", "-")])


def test_nonces_live_75_seconds_from_the_last_listing() -> None:
    """A later listing renews the earlier nonces of the same account and chute, and no others."""
    book = NonceBook()
    (first, spare) = book.give(b"a", "chute", 2, 0.0)
    (other,) = book.give(b"a", "other", 1, 0.0)
    assert book.use(b"a", "chute", first, 74.9)
    book.give(b"a", "chute", 1, 74.9)
    assert not book.use(b"a", "other", other, 75.0)
    assert book.use(b"a", "chute", spare, 149.8)
    (late,) = book.give(b"a", "chute", 1, 149.8)
    assert not book.use(b"a", "chute", late, 224.8)


def test_a_limit_counts_by_the_minutes_of_the_clock() -> None:
    """It is free again when the minute turns, not a minute after the first call."""
    limit = MinuteLimit(2)
    assert [limit.allows(now) for now in (59.0, 59.5, 59.9, 60.0)] == [True, True, False, True]


def test_instance_and_test_client_agree_with_the_published_vectors() -> None:
    """The request vector opens in the instance, those of answers and streams by the keys of the tests' own client."""
    path = Path(__file__).parent.parent / "e2ee" / "vectors.json"
    published = json.loads(path.read_text(encoding="utf-8"))["chutes_e2ee"]
    private = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(published["mlkem768_seed"]))
    vectors = {vector["info"]: vector for vector in published["vectors"]}
    assert set(vectors) == {"e2e-req-v1", "e2e-resp-v1", "e2e-stream-v1"}
    for info, vector in vectors.items():
        ciphertext, sealed = b64decode(vector["mlkem_ct"]), b64decode(vector["nonce_ct_tag_b64"])
        cipher = derived(private.decapsulate(ciphertext), ciphertext, info.encode())
        clear = cipher.decrypt(sealed[:12], sealed[12:], None)
        assert (gzip.decompress(clear) if vector["gzip"] else clear) == vector["plaintext"].encode()
    request = vectors["e2e-req-v1"]
    blob = b64decode(request["mlkem_ct"]) + b64decode(request["nonce_ct_tag_b64"])
    assert open_request(private, blob) == request["plaintext"].encode()


def test_the_instance_opens_only_what_keeps_the_rules() -> None:
    """A changed byte, another key, a second or unfinished gzip member, a bomb or a stub are not opened."""
    private = MLKEM768PrivateKey.generate()
    public, packed = private.public_key(), gzip.compress(b'{"a":1}')
    blob = seal_member(public, packed)
    assert open_request(private, blob) == b'{"a":1}'
    faulty = [
        blob[:-1] + bytes([blob[-1] ^ 1]),
        blob[:1100],
        seal_member(MLKEM768PrivateKey.generate().public_key(), packed),
        seal_member(public, packed + packed),
        seal_member(public, packed[:-1]),
        seal_member(public, b"not gzip at all, but long enough"),
        seal_member(public, gzip_bomb(33)),
    ]
    for wrong in faulty:
        with pytest.raises(NotOpened):
            open_request(private, wrong)
