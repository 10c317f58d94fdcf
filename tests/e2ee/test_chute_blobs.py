"""Blobs between gateway and instance: the vectors, what is sealed, and the bounds of what is opened."""

import gzip
import json
from base64 import b64decode, b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.demo.chute_sealing import gzip_bomb, open_request, packed, seal_packed
from chutes_autopilot.e2ee.chute import (
    ChuteProtocolError,
    ResponseSecret,
    derived_key,
    gunzip,
    load_public_key,
    open_record,
    open_response,
    read_wishes,
    require_mlkem,
    seal_request,
    strict_base64,
)
from chutes_autopilot.errors import ApiError

LIMIT = 4096


@pytest.fixture(scope="module")
def instance() -> MLKEM768PrivateKey:
    return MLKEM768PrivateKey.generate()


@pytest.fixture(scope="module")
def key_text(instance: MLKEM768PrivateKey) -> str:
    return b64encode(instance.public_key().public_bytes_raw()).decode()


@pytest.fixture(scope="module")
def attempt() -> tuple[ResponseSecret, MLKEM768PublicKey]:
    secret = ResponseSecret()
    return secret, MLKEM768PublicKey.from_public_bytes(b64decode(secret.public_base64))


def fault(blob: bytes, secret: ResponseSecret) -> str:
    with pytest.raises(ChuteProtocolError) as caught:
        open_response(blob, secret, LIMIT)
    return caught.value.code


def sealed_json(instance: MLKEM768PrivateKey, key_text: str, body: bytes, **more: Any) -> bytes:
    blob, _ = seal_request(key_text, body, "chute/Model", **more)
    return open_request(instance, blob)


@pytest.mark.parametrize("info", ["e2e-req-v1", "e2e-resp-v1", "e2e-stream-v1"])
def test_the_vectors_open(vectors: dict[str, Any], info: str) -> None:
    """Public key, secret, derived key, plaintext: as an independent implementation has them."""
    block = vectors["chutes_e2ee"]
    (vector,) = (v for v in block["vectors"] if v["info"] == info)
    private = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(block["mlkem768_seed"]))
    secret = ResponseSecret(private)
    ciphertext, record = b64decode(vector["mlkem_ct"]), b64decode(vector["nonce_ct_tag_b64"])
    key = derived_key(bytes.fromhex(vector["shared_secret"]), ciphertext, info.encode())
    assert secret.public_base64 == block["mlkem768_public_b64"]
    assert key.hex() == vector["key"] == secret.key(ciphertext, info.encode()).hex()
    opened = open_record(ChaCha20Poly1305(key), record)
    assert (gunzip(opened, LIMIT) if vector["gzip"] else opened) == vector["plaintext"].encode()
    if info == "e2e-resp-v1":
        assert open_response(ciphertext + record, secret, LIMIT) == vector["plaintext"].encode()


def test_the_instance_opens_what_was_sealed_to_it(instance: MLKEM768PrivateKey, key_text: str) -> None:
    """With the chute's model, our key for the answer in place of the client's, and all else as it came."""
    body = b'{"model": "other", "e2e_response_pk": "theirs", "seed": 1.50, "n": 12345678901234567890, "messages": []}'
    blob, secret = seal_request(key_text, body, "chute/Model")
    clear = open_request(instance, blob)
    assert json.loads(clear)["model"] == "chute/Model"
    assert json.loads(clear)["e2e_response_pk"] == secret.public_base64
    assert b'"seed":1.50,"n":12345678901234567890,"messages":[]' in clear
    assert b"theirs" not in clear


def test_every_sealing_is_another(key_text: str) -> None:
    """Neither the blob nor the key for the answer is ever used again."""
    (first, one), (second, other) = (seal_request(key_text, b"{}", "m") for _ in range(2))
    assert first[:1088] != second[:1088]
    assert one.public_base64 != other.public_base64


@pytest.mark.parametrize("text", [r"half \ud83d", r"whole \ud83d\ude00", r"no escape \\ud83d", r"\u0020d83d"])
def test_escapes_of_surrogates_are_kept(instance: MLKEM768PrivateKey, key_text: str, text: str) -> None:
    """Also those of half a pair, which clients that cut an emoji send."""
    clear = sealed_json(instance, key_text, b'{"user":"%b and \\uDC00"}' % text.encode())
    assert b'"user":"%b and \\uDC00"' % text.encode() in clear


def test_thinking_goes_into_the_ciphertext(instance: MLKEM768PrivateKey, key_text: str) -> None:
    """The name's suffix is the platform's, the instance only knows the template's switches; a client's own ones win."""
    body = b'{"chat_template_kwargs":{"enable_thinking":false,"x":1}}'
    clear = json.loads(sealed_json(instance, key_text, body, thinking=True))
    assert clear["chat_template_kwargs"] == {"thinking": True, "enable_thinking": False, "x": 1}
    clear = json.loads(sealed_json(instance, key_text, b"{}", thinking=True))
    assert clear["chat_template_kwargs"] == {"thinking": True, "enable_thinking": True}
    assert "chat_template_kwargs" not in json.loads(sealed_json(instance, key_text, b"{}"))


@pytest.mark.parametrize(
    ("body", "wishes"),
    [
        (b"{}", (False, False, False)),
        (b'{"stream": null, "stream_options": null}', (False, False, False)),
        (b'{"stream": true, "stream_options": {"include_usage": true}}', (True, True, False)),
        (b'{"stream": true, "stream_options": {"continuous_usage_stats": true, "x": "\\ud800"}}', (True, False, True)),
        (b'{"stream": false, "stream_options": [1]}', (False, False, False)),
        (b'{"stream": true, "stream_options": {"include_usage": 1}}', (True, False, False)),
    ],
)
def test_wishes_are_read(body: bytes, wishes: tuple[bool, bool, bool]) -> None:
    """What the client asks for decides what is announced outside the ciphertext and which counters it gets."""
    read = read_wishes(body)
    assert (read.stream, read.usage, read.continuous_usage) == wishes


@pytest.mark.parametrize("value", ["1", "0", '"true"', "1.0", "[]", "{}"])
def test_a_stream_that_is_no_boolean_is_refused(value: str) -> None:
    """The instance would read some of them as true and answer in a form that was not announced."""
    with pytest.raises(ApiError) as caught:
        read_wishes(b'{"stream": %b}' % value.encode())
    assert (caught.value.code, caught.value.param) == ("invalid_body", "stream")


def test_an_answer_opens(attempt: tuple[ResponseSecret, MLKEM768PublicKey]) -> None:
    """Up to the limit, before and after it is unzipped."""
    secret, public = attempt
    body = b'{"id": "x"}'.ljust(LIMIT)
    assert open_response(seal_packed(public, packed(body)), secret, LIMIT) == body
    assert fault(seal_packed(public, packed(body + b" ")), secret) == "too_large"
    assert fault(bytes(LIMIT + 1), secret) == "too_large"


@pytest.mark.parametrize(
    ("member", "code"),
    [
        (gzip_bomb(2), "too_large"),
        (packed(b"{}") + packed(b"{}"), "bad_gzip"),
        (packed(b"{}") + b"\0", "bad_gzip"),
        (packed(b'{"a": "bcdefgh"}')[:-1], "bad_gzip"),
        (b"{}".ljust(18), "bad_gzip"),
        (packed(b"[]"), "garbage"),
        (packed(b"{}}"), "garbage"),
        (packed(b'{"a": "\xff"}'), "garbage"),
        (packed(b"[" * 3000), "garbage"),
    ],
    ids=["bomb", "two members", "trailing byte", "cut", "no gzip", "list", "no JSON", "no UTF-8", "deep"],
)
def test_what_an_answer_must_not_be(
    attempt: tuple[ResponseSecret, MLKEM768PublicKey], member: bytes, code: str
) -> None:
    """Exactly one whole gzip member with one JSON object, of bounded size."""
    secret, public = attempt
    assert fault(seal_packed(public, member), secret) == code


@pytest.mark.parametrize("place", [0, 16, 1087, 1088, 1100, -1])
def test_a_changed_byte_shows_in_the_tag(attempt: tuple[ResponseSecret, MLKEM768PublicKey], place: int) -> None:
    """Wherever it is: in what was encapsulated, the nonce, the text or the tag."""
    secret, public = attempt
    blob = bytearray(seal_packed(public, packed(b"{}")))
    blob[place] ^= 1
    assert fault(bytes(blob), secret) == "bad_tag"


def test_a_short_blob_and_another_attempts_answer(attempt: tuple[ResponseSecret, MLKEM768PublicKey]) -> None:
    """One byte too few is no blob; what was sealed to another attempt does not open."""
    secret, public = attempt
    blob = seal_packed(public, packed(b"{}"))
    assert fault(blob[: 1088 + 12 + 16 + 17], secret) == "bad_blob"
    assert fault(blob, ResponseSecret()) == "bad_tag"


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_base64_is_read_in_one_spelling_only(raw: bytes) -> None:
    """What the encoder writes is read back; the same with anything added, left out or other spare bits is not."""
    text = b64encode(raw).decode()
    assert strict_base64(text, len(raw)) == raw
    others = [text + "\n", " " + text, text + "=", text.rstrip("=") if "=" in text else text[:-1] + "-"]
    if text.endswith("=") and raw:
        others.append(text.rstrip("=")[:-1] + "B" + "=" * text.count("="))
    for other in others:
        if other != text:
            with pytest.raises(ValueError, match="base64"):
                strict_base64(other)


@pytest.mark.parametrize("key", ["", "AAAA", b64encode(b"\xff" * 1184).decode(), b64encode(bytes(1185)).decode()])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """Wrong length, or coefficients out of range."""
    with pytest.raises(ValueError, match=r"base64|size|ML-KEM"):
        load_public_key(key)


def test_nothing_secret_shows() -> None:
    """Neither in a representation nor in an error; and the library can do what is needed."""
    require_mlkem()
    assert repr(ResponseSecret()) == "ResponseSecret()"
    assert str(ChuteProtocolError("bad_tag", b"prompt")) == "bad_tag"
    assert gunzip(gzip.compress(b"x"), 1) == b"x"
