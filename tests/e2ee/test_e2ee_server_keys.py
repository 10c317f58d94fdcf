import json
from typing import Any

import pytest
from attrs import asdict
from e2ee_by_the_book import N, ecdsa_public, ed25519_public

from chutes_autopilot.e2ee.curves import Algo, InvalidKey
from chutes_autopilot.e2ee.fields import FieldSealer
from chutes_autopilot.e2ee.server_keys import (
    KeyFileError,
    ServerKeys,
    ephemeral_keys,
    keys_from_secrets,
    new_key_file,
    read_key_file,
)
from chutes_autopilot.e2ee.signing import verify

ALGOS: list[Algo] = ["ecdsa", "ed25519"]
NOW = 1_800_000_000.5
SECRET = "5ec2e7" + "ab" * 29


def entry(**members: object) -> dict[str, object]:
    return {"id": "2026-09", "ecdsa": SECRET, "ed25519": SECRET, "not_after": None, **members}


def older(**members: object) -> dict[str, object]:
    return entry(**{"id": "2026-08", "ecdsa": "11" * 32, "ed25519": "22" * 32, "not_after": 1_800_000_000, **members})


def file(*entries: object, **members: object) -> bytes:
    return json.dumps({"version": 1, "keys": list(entries), **members}).encode()


def test_the_known_keys_are_known_by_every_name(vectors: dict[str, Any]) -> None:
    """A key has the known public forms and address, and is found by the raw key in any accepted length."""
    fixed, signature = vectors["fixed"]["server"], vectors["signature"]
    keys = read_key_file(file(entry(ecdsa=fixed["ecdsa"]["private"], ed25519=fixed["ed25519"]["private"].upper())))
    for algo in ALGOS:
        key = keys.current(algo)
        raw = bytes.fromhex(fixed[algo]["public"])
        assert key.wire_hex == fixed[algo]["public"]
        assert key.address == signature[f"signing_address_{algo}"]
        assert keys.find(algo, raw, NOW) is keys.find(algo, key.public, NOW) is key
        assert key.address_bytes.hex() == signature[f"report_data_{algo}"][: 2 * len(key.address_bytes)]
        assert keys.by_address(algo, key.address.upper(), NOW) is keys.by_address(algo, key.address.lower(), NOW) is key
        assert keys.by_id(algo, "2026-09", NOW) is key
        assert key.sign(signature["text"]) == signature[f"signature_{algo}"]
        for wrong in (b"", raw[:-1], raw + b"\x00", b"\x04" + raw[:-1], b"\x04\x04" + raw, bytes(len(raw))):
            assert keys.find(algo, wrong, NOW) is None
        assert keys.by_address(algo, "", NOW) is keys.by_id(algo, "2026-08", NOW) is None
    assert keys.find("ecdsa", keys.current("ed25519").public, NOW) is None
    assert keys.find("ed25519", keys.current("ecdsa").public, NOW) is None


def test_a_key_opens_what_was_sealed_to_it() -> None:
    """The opener and the signer of a key belong to its public key."""
    for key in ephemeral_keys().keys:
        assert key.opener.open(FieldSealer(key.algo, key.public).seal("text", b"aad"), b"aad") == "text"
        assert verify(key.algo, key.public, "text", key.sign("text"))


def test_rotation_keeps_the_old_key_until_its_last_second() -> None:
    """Both entries count up to and including not_after, the first is current, and afterwards only that one counts."""
    keys = read_key_file(file(entry(), older()))
    for algo in ALGOS:
        new, old = keys.active(algo, 1_800_000_000)
        assert (new.id, new.not_after, old.id, old.not_after) == ("2026-09", None, "2026-08", 1_800_000_000)
        assert keys.current(algo) is new
        for now, found in ((1_800_000_000.0, old), (1_800_000_000.5, None)):
            assert keys.find(algo, old.public, now) is found
            assert keys.by_address(algo, old.address, now) is found
            assert keys.by_id(algo, "2026-08", now) is found
        assert keys.active(algo, NOW) == (new,)
    assert keys.identity() == ("2026-09", "2026-08")


def test_not_after_may_be_absent() -> None:
    """An entry without not_after has no end, and equals one that says null."""
    without = entry()
    del without["not_after"]
    assert read_key_file(file(without)) == read_key_file(file(entry()))
    assert read_key_file(file(without)) != read_key_file(file(entry(not_after=5)))


TOP = "not a JSON object in UTF-8 that has each member once"
SCALAR = "entry 1, ecdsa: must be from 1 to the order of secp256k1 less 1"
BAD_FILES = {
    "empty": (b"", TOP),
    "not JSON": (b'{"version":1,"keys":[{"ecdsa":"' + SECRET.encode(), TOP),
    "not UTF-8": (file(entry())[:-1] + b"\xff}", TOP),
    "byte order mark": (b"\xef\xbb\xbf" + file(entry()), TOP),
    "a list": (b"[]", TOP),
    "nested too deep": (b"[" * 200_000, TOP),
    "member twice": (file(entry()).replace(b'"id"', b'"ecdsa": "' + b"11" * 32 + b'", "id"'), TOP),
    "no version": (b'{"keys":[]}', "version: must be 1"),
    "version 2": (file(entry(), version=2), "version: must be 1"),
    "version true": (file(entry(), version=True), "version: must be 1"),
    "version 1.0": (file(entry(), version=1.0), "version: must be 1"),
    "no keys": (b'{"version":1}', "keys: must be a list of at least one entry"),
    "keys empty": (file(), "keys: must be a list of at least one entry"),
    "keys an object": (file(keys=entry()), "keys: must be a list of at least one entry"),
    "third member": (file(entry(), **{SECRET: 1}), "there is a member other than version and keys"),
    "entry a string": (file(entry(), SECRET), "entry 2, must be an object"),
    "unknown member": (
        file(entry(**{SECRET: 1})),
        "entry 1, there is a member other than id, ecdsa, ed25519, not_after",
    ),
    "no id": (file(entry(id=None)), "entry 1, id: must be 1 to 64 letters, digits, dots, underscores or hyphens"),
    "id a line": (
        file(entry(), older(id="a\n")),
        "entry 2, id: must be 1 to 64 letters, digits, dots, underscores or hyphens",
    ),
    "not_after text": (file(entry(not_after=SECRET)), "entry 1, not_after: must be null or Unix seconds"),
    "not_after true": (file(entry(not_after=True)), "entry 1, not_after: must be null or Unix seconds"),
    "not_after milliseconds": (
        file(entry(not_after=1_800_000_000_000)),
        "entry 1, not_after: must be null or Unix seconds",
    ),
    "not_after zero": (file(entry(not_after=0)), "entry 1, not_after: must be null or Unix seconds"),
    "no ecdsa": (file(entry(), older(ecdsa=None)), "entry 2, ecdsa: must be 64 hexadecimal digits"),
    "ecdsa 0x": (file(entry(ecdsa="0x" + SECRET)), "entry 1, ecdsa: must be 64 hexadecimal digits"),
    "ecdsa spaced": (file(entry(ecdsa=SECRET + "\n")), "entry 1, ecdsa: must be 64 hexadecimal digits"),
    "ecdsa zero": (file(entry(ecdsa="00" * 32)), SCALAR),
    "ecdsa order": (file(entry(ecdsa=f"{N:064x}")), SCALAR),
    "ed25519 short": (file(entry(), older(ed25519=SECRET[2:])), "entry 2, ed25519: must be 64 hexadecimal digits"),
    "ed25519 a number": (file(entry(ed25519=12)), "entry 1, ed25519: must be 64 hexadecimal digits"),
    "id twice": (file(entry(), older(id="2026-09")), "entry 2, id: another entry has it too"),
    "ecdsa twice": (file(entry(), older(ecdsa=SECRET)), "entry 2, ecdsa: another entry has the same key"),
    "ed25519 twice": (file(entry(), older(ed25519=SECRET.upper())), "entry 2, ed25519: another entry has the same key"),
}


@pytest.mark.parametrize(("data", "text"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_key_file_is_refused_by_entry_and_member(data: bytes, text: str) -> None:
    """The error says where and what is allowed; neither it nor anything chained to it has a value of the file."""
    with pytest.raises(KeyFileError) as caught:
        read_key_file(data)
    assert str(caught.value) == text
    error: BaseException | None = caught.value
    while error is not None:
        assert isinstance(error, KeyFileError)
        assert not any(part in repr(error) for part in (SECRET, SECRET[2:], "5ec2e7", f"{N:x}"))
        error = error.__cause__ or error.__context__


def test_a_new_file_holds_fresh_keys() -> None:
    """Each new file has keys of its own and no end."""
    first, second = (read_key_file(new_key_file("2026-09")) for _ in range(2))
    assert first.identity() == second.identity() == ("2026-09",)
    assert len({key.public for keys in (first, second) for key in keys.keys}) == 4
    assert {key.not_after for key in first.keys} == {None}


def test_a_new_entry_goes_in_front_of_the_old_ones() -> None:
    """Rotation keeps the old entries, ends those without an end as asked, and leaves other ends alone."""
    old = file(entry(), older(not_after=7))
    keys = read_key_file(new_key_file("2026-10", old, old_not_after=1_900_000_000))
    assert [(key.id, key.not_after) for key in keys.keys if key.algo == "ecdsa"] == [
        ("2026-10", None),
        ("2026-09", 1_900_000_000),
        ("2026-08", 7),
    ]
    assert keys.keys[2].public == read_key_file(old).keys[0].public
    assert read_key_file(new_key_file("2026-10", old)).keys[2].not_after is None


def test_a_new_file_is_refused_where_it_could_not_be_read() -> None:
    """A name that is taken or unfit, and an old file that is broken, are refused before anything is written."""
    with pytest.raises(KeyFileError, match=r"^entry 2, id: another entry has it too$"):
        new_key_file("2026-09", file(entry()))
    with pytest.raises(KeyFileError, match=r"^entry 1, id: must be"):
        new_key_file("two words")
    with pytest.raises(KeyFileError, match=r"^version: must be 1$"):
        new_key_file("2026-10", b"{}")


def test_secrets_become_the_two_keys_of_a_generation() -> None:
    """The scalar and the seed give the public keys of their curves' formulas, and share name and end."""
    scalar, seed = bytes(range(32)), bytes(range(32, 64))
    ecdsa, ed25519 = keys_from_secrets("2", scalar, seed, 99)
    assert (ecdsa.public, ed25519.public) == (ecdsa_public(scalar), ed25519_public(seed))
    assert {(key.id, key.not_after) for key in (ecdsa, ed25519)} == {("2", 99)}
    for bad in ((bytes(32), seed), (scalar, seed[1:]), (scalar[1:], seed), (N.to_bytes(32, "big"), seed)):
        with pytest.raises(InvalidKey):
            keys_from_secrets("2", *bad)


def test_a_set_of_keys_has_every_algo_and_no_key_twice() -> None:
    """A set that could not answer for an algo, or holds a key twice, cannot be made."""
    pair = keys_from_secrets("1", bytes(range(32)), bytes(range(32)))
    for wrong in ((), pair[:1], pair[1:], pair + pair):
        with pytest.raises(ValueError, match=r"^keys: each algo needs one"):
            ServerKeys(wrong)


def test_no_private_part_shows() -> None:
    """repr, format and the attributes' dictionary of keys hold no secret in any writing, and cannot be pickled."""
    secret = bytes.fromhex(SECRET)
    keys = read_key_file(file(entry()))
    told = f"{keys} {keys!r} {keys.keys[0]!r} {asdict(keys)} {keys.identity()}"
    for writing in (
        SECRET,
        SECRET.upper(),
        str(secret)[2:-1],
        str(int(SECRET, 16)),
        str(int.from_bytes(secret, "little")),
    ):
        assert writing not in told
    assert "opener" not in repr(keys)
    assert "signer" not in repr(keys)
