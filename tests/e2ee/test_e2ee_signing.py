import re
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from e2ee_by_the_book import N

from chutes_autopilot.e2ee.curves import Algo, ecdsa_private, public_key, signing_address, wire_hex
from chutes_autopilot.e2ee.signing import recover_address, sign_ecdsa_eip191, sign_ed25519, verify

ALGOS: list[Algo] = ["ecdsa", "ed25519"]


def signed(algo: Algo, private: bytes, text: str) -> str:
    if algo == "ecdsa":
        return sign_ecdsa_eip191(ecdsa_private(private), text)
    return sign_ed25519(Ed25519PrivateKey.from_private_bytes(private), text)


def test_the_known_signatures_come_out_and_verify(vectors: dict[str, Any]) -> None:
    """Both signatures of the known text are the known ones to the byte, and lead to the known addresses."""
    known = vectors["signature"]
    for algo in ALGOS:
        assert (
            signed(algo, bytes.fromhex(vectors["fixed"]["server"][algo]["private"]), known["text"])
            == (known[f"signature_{algo}"])
        )
        assert verify(algo, known[f"signing_address_{algo}"], known["text"], known[f"signature_{algo}"])
    assert recover_address(known["text"], known["signature_ecdsa"]) == known["signing_address_ecdsa"]


def test_a_wallet_signature_made_elsewhere_leads_to_its_signer() -> None:
    """The example in the documentation of web3.js (eth.accounts.sign) comes out, and its signer is recovered."""
    key = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
    published = (
        "0xb91467e570a6466aa9e9876cbcd013baba02900b8979d43fe208a4a4f339f5fd"
        "6007e74cd82e037b800186422fc2da167c747ef045e5d18a5f5d4300f8e1a0291c"
    )
    assert signed("ecdsa", key, "Some data") == published
    assert recover_address("Some data", published) == "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


@pytest.mark.parametrize("algo", ALGOS)
def test_signatures_lead_back_to_the_key_by_every_name_of_it(algo: Algo) -> None:
    """Random keys and texts: address in any case, key in hex, key as bytes; both recovery values occur."""
    random, ends = Random(10), set()
    for i in range(6):
        private, text = random.randbytes(32), "Grüße " * i
        signature, public = signed(algo, private, text), public_key(algo, private)
        ends.add(signature[-2:])
        address = signing_address(algo, public)
        names = [address, address.lower(), address.upper(), wire_hex(algo, public), public]
        for name in [*names, public.hex(), public[-64:]] if i == 0 else names[:1]:
            assert verify(algo, name, text, signature)
        assert signature == signed(algo, private, text)
        assert not verify(algo, address, text + ".", signature)
        assert not verify(algo, signing_address(algo, public_key(algo, bytes(31) + b"\x01")), text, signature)
    if algo == "ecdsa":
        assert ends == {"1b", "1c"}


def test_s_is_in_the_lower_half_and_only_there() -> None:
    """We sign with a low s, and refuse the twin signature with n - s, which anyone can make of it."""
    private = bytes(range(32))
    signature = signed("ecdsa", private, "text")
    assert re.fullmatch("0x[0-9a-f]{128}1[bc]", signature)
    s = int(signature[66:130], 16)
    assert s <= N // 2
    twin = f"{signature[:66]}{N - s:064x}{'1c' if signature.endswith('1b') else '1b'}"
    assert not verify("ecdsa", signing_address("ecdsa", public_key("ecdsa", private)), "text", twin)


@pytest.mark.parametrize("algo", ALGOS)
def test_what_is_malformed_does_not_verify(algo: Algo) -> None:
    """Signatures and names of wrong form, range or alphabet are False, never an error."""
    private = bytes(range(32))
    good, address = signed(algo, private, "text"), signing_address(algo, public_key(algo, private))
    assert verify(algo, address, "text", good)
    for wrong in ("", "0x", good[:-1], good + "00", " " + good, good.replace("0x", ""), "0x" + good, "é" * len(good)):
        if wrong != good:
            assert not verify(algo, address, "text", wrong)
    for r, s, v in (
        (0, 1, 27),
        (1, 0, 27),
        (N, 1, 27),
        (1, N, 27),
        (1, 1, 0),
        (1, 1, 29),
        (5, 1, 27),
        (2**256 - 1, 1, 28),
    ):
        assert not verify(algo, address, "text", f"0x{r:064x}{s:064x}{v:02x}")
    assert not verify(algo, address, "text", "0" * 128)
    if algo == "ecdsa":
        for v in ("00", "01", "1a", "1d", "1e", "ff"):
            assert not verify(algo, address, "text", good[:-2] + v)
    assert not verify(algo, address, "text \ud800", good)
    for name in ("", "0x", "0x00", "zz", "é", b"", b"\x02" * 33, "04" * 65):
        assert not verify(algo, name, "text", good)
