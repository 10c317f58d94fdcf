import os
from typing import Any

import pytest
from e2ee_by_the_book import P25519, ecdsa_public, fields
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.e2ee.curves import Algo, InvalidKey, normal_form, public_key
from chutes_autopilot.e2ee.fields import (
    FieldNotOpened,
    FieldNotSealed,
    FieldOpener,
    FieldSealer,
    ServerOpener,
    request_aad,
    response_aad,
)

ALGOS: list[Algo] = ["ecdsa", "ed25519"]
PRIVATE = bytes(range(1, 33))
EPHEMERAL_BYTES = {"ecdsa": 65, "ed25519": 32}


def key(vectors: dict[str, Any], side: str, algo: str, part: str) -> bytes:
    return bytes.fromhex(vectors["fixed"][side][algo][part])


def not_opened(opener: ServerOpener, field_hex: str, aad: bytes = b"") -> str:
    """That the field does not open, and all that the failure tells."""
    with pytest.raises(FieldNotOpened) as caught:
        opener.open(field_hex, aad)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return repr(caught.value)


def test_request_fields_open_and_seal_to_the_same_bytes(vectors: dict[str, Any]) -> None:
    """Every known request field has our associated data, opens with the server's key, and seals to the same hex."""
    fixed = vectors["fixed"]
    for known in vectors["request_fields"]:
        algo, aad = known["algo"], b""
        if known["version"] == "2":
            place = known["message_index"], known["content_index"]
            aad = request_aad(algo, fixed["model"], *place, fixed["nonce"], fixed["timestamp"])
        assert aad == (known["aad"] or "").encode()
        opener = ServerOpener(algo, key(vectors, "server", algo, "private"))
        assert opener.open(known["ciphertext_hex"], aad) == known["plaintext"]
        assert opener.open(known["ciphertext_hex"].upper(), aad) == known["plaintext"]
        public = normal_form(algo, key(vectors, "server", algo, "public"))
        sealer = FieldSealer(algo, public, ephemeral_private=bytes.fromhex(known["ephemeral_private"]))
        sealed = sealer.seal(known["plaintext"], aad, nonce=bytes.fromhex(known["gcm_nonce"]))
        assert sealed == known["ciphertext_hex"]


def test_response_fields_open_and_seal_to_the_same_bytes(vectors: dict[str, Any]) -> None:
    """Every known response field has our associated data, opens with the client's key, and seals to the same hex."""
    fixed = vectors["fixed"]
    for known in vectors["response_fields"]:
        algo, aad = known["algo"], b""
        if known["version"] == "2":
            place = fixed["response_id"], known["choice"], known["field"]
            aad = response_aad(algo, fixed["model"], *place, fixed["nonce"], fixed["timestamp"])
        assert aad == (known["aad"] or "").encode()
        opener = FieldOpener(algo, key(vectors, "client", algo, "private"))
        assert opener.open(known["ciphertext_hex"], aad) == known["plaintext"]
        public = normal_form(algo, key(vectors, "client", algo, "public"))
        sealer = FieldSealer(algo, public, ephemeral_private=bytes.fromhex(known["ephemeral_private"]))
        sealed = sealer.seal(known["plaintext"], aad, nonce=bytes.fromhex(known["gcm_nonce"]))
        assert sealed == known["ciphertext_hex"]


def test_negative_fields_do_not_open(vectors: dict[str, Any]) -> None:
    """Each known bad field fails, and all failures look the same."""
    told = {
        not_opened(
            ServerOpener(known["algo"], key(vectors, "server", known["algo"], "private")),
            known["ciphertext_hex"],
            (known["aad"] or "").encode(),
        )
        for known in vectors["negative_fields"]
    }
    assert told == {"FieldNotOpened('the field does not open')"}


def test_fields_made_by_the_book_open_and_seal_to_the_same_bytes() -> None:
    """What a second implementation seals with random keys opens, and we seal the same bytes from the same secrets."""
    for field in fields(seed=15, count=12):
        algo: Algo = "ecdsa" if field.algo == "ecdsa" else "ed25519"
        assert ServerOpener(algo, field.private).open(field.sealed, field.aad) == field.text
        assert public_key(algo, field.private) == field.public
        sealer = FieldSealer(algo, field.public, ephemeral_private=field.ephemeral_private)
        assert sealer.seal(field.text, field.aad, nonce=field.nonce) == field.sealed


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(ALGOS), st.text(), st.binary(max_size=100), st.data())
def test_any_change_of_a_sealed_text_is_noticed(algo: Algo, text: str, aad: bytes, data: st.DataObject) -> None:
    """Any text comes back; with a byte of the field or its associated data changed, or cut off, nothing."""
    opener = ServerOpener(algo, PRIVATE)
    sealed = bytes.fromhex(FieldSealer(algo, public_key(algo, PRIVATE)).seal(text, aad))
    assert opener.open(sealed.hex(), aad) == text
    at, flip = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(1, 255))
    if not (algo == "ed25519" and at == 31 and flip == 0x80):  # X25519 ignores that bit (RFC 7748, section 5)
        not_opened(opener, (sealed[:at] + bytes([sealed[at] ^ flip]) + sealed[at + 1 :]).hex(), aad)
    not_opened(opener, sealed[:at].hex(), aad)
    not_opened(opener, sealed.hex(), aad + b"\x00")


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(ALGOS), st.one_of(st.text(), st.binary(max_size=120).map(bytes.hex)))
def test_rubbish_does_not_open(algo: Algo, rubbish: str) -> None:
    """Whatever text stands where a field should: the one uniform failure."""
    not_opened(ServerOpener(algo, PRIVATE), rubbish)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_field_is_hex_and_nothing_around_it(algo: Algo) -> None:
    """White space, a 0x, an odd digit and digits of other scripts are not read over."""
    opener = ServerOpener(algo, PRIVATE)
    sealed = FieldSealer(algo, public_key(algo, PRIVATE)).seal("x", b"")
    for wrong in (
        f" {sealed}",
        f"{sealed}\n",
        f"{sealed[:2]} {sealed[2:]}",
        f"0x{sealed}",
        sealed[:-1],
        f"{sealed}\u0660\u0660",
    ):
        not_opened(opener, wrong)


@pytest.mark.parametrize("algo", ALGOS)
def test_the_shortest_field_is_the_empty_text(algo: Algo) -> None:
    """The empty text takes 93 or 60 bytes; anything shorter does not open."""
    opener = ServerOpener(algo, PRIVATE)
    sealed = FieldSealer(algo, public_key(algo, PRIVATE)).seal("", b"")
    assert len(sealed) // 2 == EPHEMERAL_BYTES[algo] + 28
    assert opener.open(sealed, b"") == ""
    for length in (0, 2, 2 * EPHEMERAL_BYTES[algo], len(sealed) - 2):
        not_opened(opener, sealed[:length])


def test_bad_ephemeral_keys_do_not_open() -> None:
    """A compressed, hybrid or off-curve point, and every X25519 point of low order, fail like a wrong tag."""
    point = ecdsa_public(PRIVATE)
    wrong_y = point[:64] + bytes([point[64] ^ 1])
    ecdsa = ServerOpener("ecdsa", PRIVATE)
    compressed = bytes([2 + point[64] % 2]) + point[1:33]
    for ephemeral in (compressed, b"\x06" + point[1:], b"\x07" + point[1:], wrong_y, b"\x04" + bytes(64)):
        not_opened(ecdsa, (ephemeral + bytes(60)).hex())
    for u in (0, 1, P25519 - 1, P25519, P25519 + 1):
        not_opened(ServerOpener("ed25519", PRIVATE), (u.to_bytes(32, "little") + bytes(28)).hex())


@pytest.mark.parametrize("algo", ALGOS)
def test_bytes_that_are_no_text_do_not_open(algo: Algo) -> None:
    """A well-sealed field whose plaintext is not UTF-8 fails without a trace of the plaintext."""
    sealer = FieldSealer(algo, public_key(algo, PRIVATE))
    nonce = os.urandom(12)
    sealed = bytes.fromhex(sealer.seal("", b"", nonce=nonce))[:-28] + nonce
    sealed += sealer._cipher.encrypt(nonce, b"marker \xff", b"")
    assert "marker" not in not_opened(ServerOpener(algo, PRIVATE), sealed.hex())


@pytest.mark.parametrize("algo", ALGOS)
def test_nothing_is_sealed_to_a_bad_key(algo: Algo) -> None:
    """A key that no exchange works with is refused when the sealer is made, before anything is sealed."""
    good = ecdsa_public(PRIVATE)
    bad = [good[1:], bytes([2 + good[64] % 2]) + good[1:33], good[:64] + bytes([good[64] ^ 1])]
    if algo == "ed25519":
        bad = [y.to_bytes(32, "little") for y in (0, 1, P25519 - 1, P25519, 2**255 - 1)]
    for public in [*bad, b""]:
        with pytest.raises(InvalidKey) as caught:
            FieldSealer(algo, public)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


@pytest.mark.parametrize("algo", ALGOS)
def test_a_text_with_lone_surrogates_is_not_sealed(algo: Algo) -> None:
    """JSON can escape half a character: that fails, and the failure does not hold the text as Unicode errors do."""
    with pytest.raises(FieldNotSealed) as caught:
        FieldSealer(algo, public_key(algo, PRIVATE)).seal("marker \ud800", b"")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert "marker" not in repr(caught.value)


@pytest.mark.parametrize("algo", ALGOS)
def test_one_sealer_has_one_ephemeral_key_and_many_nonces(algo: Algo) -> None:
    """Fields of one sealer begin with the same key and differ in the nonce; another sealer has another key."""
    sealers = [FieldSealer(algo, public_key(algo, PRIVATE)) for _ in range(2)]
    sealed = [bytes.fromhex(sealer.seal("same", b"")) for sealer in sealers for _ in range(5)]
    end = EPHEMERAL_BYTES[algo]
    assert len({field[:end] for field in sealed}) == 2
    assert len({field[end : end + 12] for field in sealed}) == 10


@pytest.mark.parametrize("algo", ALGOS)
def test_a_client_can_open_fields_of_several_answers_in_turn(algo: Algo) -> None:
    """Remembering the last answer's key does not get in the way of another one."""
    opener = FieldOpener(algo, PRIVATE)
    sealers = [FieldSealer(algo, public_key(algo, PRIVATE)) for _ in range(2)]
    for sealer in (sealers[0], sealers[0], sealers[1], sealers[0]):
        assert opener.open(sealer.seal("text", b"aad"), b"aad") == "text"
        not_opened(opener, sealer.seal("text", b"aad"), b"other")


def test_associated_data_holds_the_values_as_they_are() -> None:
    """Parts are numbered, a string content has a hyphen, nothing is escaped, and no model name is an error."""
    assert (
        request_aad("ecdsa", 'ö"/x', 3, 12, "n" * 16, 17)
        == 'v2|req|algo=ecdsa|model=ö"/x|m=3|c=12|n={}|ts=17'.format("n" * 16).encode()
    )
    assert b"|c=-|" in request_aad("ed25519", "x", 0, None, "n", 1)
    assert b"|c=0|" in request_aad("ed25519", "x", 0, 0, "n", 1)
    expected = b"v2|resp|algo=ed25519|model=x|id=chatcmpl-1|choice=2|field=reasoning|n=n|ts=1"
    assert response_aad("ed25519", "x", "chatcmpl-1", 2, "reasoning", "n", 1) == expected
    assert request_aad("ecdsa", "\ud800", 0, None, "n", 1) != request_aad("ecdsa", "\ud801", 0, None, "n", 1)


@pytest.mark.parametrize("algo", ALGOS)
def test_no_secret_shows_in_a_sealer_or_opener(algo: Algo) -> None:
    """repr and format of what holds keys name the algo, and there is no dictionary of attributes."""
    sealer = FieldSealer(algo, public_key(algo, PRIVATE), ephemeral_private=PRIVATE)
    for holder in (ServerOpener(algo, PRIVATE), FieldOpener(algo, PRIVATE), sealer):
        assert repr(holder) == f"{holder}" == f"<{type(holder).__name__} {algo}>"
        assert not hasattr(holder, "__dict__")
