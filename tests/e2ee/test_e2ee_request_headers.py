"""The table of header checks, in its order."""

from itertools import combinations
from typing import Any

import pytest
from exchange_factory import ALGOS, CLIENT_PRIVATE, KEYS, NONCE, NOW, header_values, policy, told

from chutes_autopilot.e2ee.curves import Algo, public_key
from chutes_autopilot.e2ee.fields import FieldOpener
from chutes_autopilot.e2ee.request_headers import E2EE_HEADERS, SealedExchange, read_e2ee_headers
from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets
from chutes_autopilot.errors import ApiError

P = 2**255 - 19
CLIENT_ECDSA = public_key("ecdsa", CLIENT_PRIVATE)

Values = dict[str, Any]


def read(values: Values, **policy_changes: Any) -> SealedExchange | None:
    listed = {k: v if isinstance(v, list) else [v] for k, v in values.items() if v is not None}
    return read_e2ee_headers(listed, KEYS, policy(**policy_changes), NOW)


def error(values: Values, **policy_changes: Any) -> str:
    with pytest.raises(ApiError) as caught:
        read(values, **policy_changes)
    assert caught.value.status == 400
    assert caught.value.type == caught.value.code
    for value in values.values():
        if isinstance(value, str) and len(value) > 4:  # what was sent is not repeated
            assert value not in told(caught.value)
    return caught.value.code


def test_known_headers_have_their_known_outcome(vectors: dict[str, Any]) -> None:
    """Every header vector is accepted as the version it is, or refused with its type; ours where we differ."""
    server = {algo: bytes.fromhex(vectors["fixed"]["server"][algo]["private"]) for algo in ALGOS}
    keys = ServerKeys(keys_from_secrets("v", server["ecdsa"], server["ed25519"]))
    for known in vectors["header_errors"]:
        values = {k.replace("_", "-"): [v] for k, v in known["headers"].items() if v is not None}
        expected = known.get("ours", known["error"])
        if expected is not None:
            with pytest.raises(ApiError) as caught:
                read_e2ee_headers(values, keys, policy(), vectors["fixed"]["timestamp"])
            assert caught.value.type == expected["type"], known["name"]
            continue
        got = read_e2ee_headers(values, keys, policy(), vectors["fixed"]["timestamp"])
        assert got is not None
        result = {"version": str(got.version), "algo": got.algo, "nonce": got.nonce, "timestamp": got.timestamp}
        assert result == known["result"], known["name"]


FAULTS: list[tuple[int, Values, Values, str]] = [
    (2, {"x-signing-algo": ["ecdsa", "ecdsa"]}, {}, "invalid_e2ee_request"),
    (4, {"x-model-pub-key": " "}, {}, "e2ee_header_missing"),
    (4, {"x-client-pub-key": None}, {}, "e2ee_header_missing"),
    (5, {"x-signing-algo": "rsa"}, {}, "e2ee_invalid_signing_algo"),
    (6, {"x-client-pub-key": "zz"}, {}, "e2ee_invalid_public_key"),
    (7, {"x-model-pub-key": "0x12"}, {}, "e2ee_invalid_public_key"),
    (8, {"x-model-pub-key": "22" * 64}, {}, "e2ee_model_key_mismatch"),
    (9, {"x-e2ee-version": "3"}, {}, "e2ee_invalid_version"),
    (10, {"x-e2ee-timestamp": ""}, {}, "e2ee_header_missing"),
    (10, {"x-e2ee-nonce": None}, {}, "e2ee_header_missing"),
    (
        11,
        {"x-e2ee-version": "1", "x-e2ee-nonce": NONCE, "x-e2ee-timestamp": str(NOW)},
        {"strict": True},
        "e2ee_invalid_version",
    ),
    (11, {"x-e2ee-version": None}, {"strict": True}, "e2ee_invalid_version"),
    (
        12,
        {"x-e2ee-version": "1", "x-e2ee-nonce": None, "x-e2ee-timestamp": None},
        {"allow_v1": False},
        "e2ee_invalid_version",
    ),
    (13, {"x-e2ee-nonce": "", "x-e2ee-timestamp": None}, {}, "e2ee_header_missing"),
    (14, {"x-e2ee-nonce": "a" * 15}, {}, "e2ee_invalid_nonce"),
    (15, {"x-e2ee-timestamp": "1.5"}, {}, "e2ee_invalid_timestamp"),
]


@pytest.mark.parametrize(("row", "fault", "settings", "code"), FAULTS)
def test_each_fault_has_its_error(row: int, fault: Values, settings: Values, code: str) -> None:
    """A request with one fault gets that row's type."""
    assert error(header_values("ecdsa") | fault, **settings) == code


def test_of_two_faults_the_earlier_row_answers() -> None:
    """The rows are checked in the table's order, whatever else is wrong."""
    checked = 0
    for (row, fault, settings, code), (later, other, other_settings, _) in combinations(FAULTS, 2):
        if row < later and not fault.keys() & other.keys():
            checked += 1
            assert error(header_values("ecdsa") | other | fault, **settings, **other_settings) == code, (row, later)
    assert checked > 40


def test_without_any_of_the_headers_a_request_is_plain() -> None:
    """No header is plain mode, or e2ee_required; a single empty one is not plain."""
    assert read({"content-type": "application/json"}) is None
    assert error({}, require=True) == "e2ee_required"
    for name in E2EE_HEADERS:
        assert error({name: ""}, require=True) == "e2ee_header_missing"


@pytest.mark.parametrize("algo", ALGOS)
def test_a_good_request_yields_what_its_answer_needs(algo: Algo) -> None:
    """Case of the algo and of hex, spaces around values and the ``04`` are free; the sealer fits the client's key."""
    values = header_values(algo)
    prefix = "04" if algo == "ecdsa" else ""
    values["x-signing-algo"] = f" {algo.upper()}\t"
    values["x-client-pub-key"] = f"{prefix}{values['x-client-pub-key']}".upper()
    values["x-model-pub-key"] = f"{prefix}{values['x-model-pub-key']}".upper()
    got = read(values)
    assert got is not None
    assert (got.algo, got.version, got.nonce, got.timestamp) == (algo, 2, NONCE, NOW)
    assert got.server_key is KEYS.current(algo)
    assert FieldOpener(algo, CLIENT_PRIVATE).open(got.sealer.seal("hi", b"aad"), b"aad") == "hi"
    assert NONCE not in repr(got)


@pytest.mark.parametrize(
    ("version", "replay_headers", "strict", "expected"),
    [
        ("1", False, False, 1),
        ("1", False, True, 1),
        ("1", True, False, 2),
        (None, False, False, 1),
        ("", True, False, 2),
        ("2", True, True, 2),
        (" 2 ", True, True, 2),
    ],
)
def test_the_version_follows_from_three_headers(
    version: str | None, replay_headers: bool, strict: bool, expected: int
) -> None:
    """A nonce with a timestamp is version 2, also under the number 1, unless the service is strict."""
    values = header_values(version=2 if replay_headers else 1) | {"x-e2ee-version": version}
    got = read(values, strict=strict)
    assert got is not None
    assert got.version == expected
    assert (got.nonce, got.timestamp) == ((NONCE, NOW) if expected == 2 else (None, None))


@pytest.mark.parametrize(
    ("algo", "key"),
    [
        ("ecdsa", b"\x11" * 64),
        ("ecdsa", b"\x02" + CLIENT_ECDSA[1:33]),
        ("ecdsa", b"\x05" + CLIENT_ECDSA[1:]),
        ("ecdsa", CLIENT_ECDSA + b"\0"),
        ("ecdsa", b"\0" * 64),
        ("ed25519", b"\x07" * 31),
        ("ed25519", b"\x07" * 33),
        *(("ed25519", y.to_bytes(32, "little")) for y in (0, 1, P - 1, P, P + 1, 2**255 - 1, 1 + 2**255)),
    ],
)
def test_a_client_key_that_nothing_can_be_sealed_to_is_refused(algo: Algo, key: bytes) -> None:
    """Points off the curve, compressed, non-canonical and low-order ones never get as far as an upstream."""
    assert error(header_values(algo) | {"x-client-pub-key": key.hex()}) == "e2ee_invalid_public_key"


@pytest.mark.parametrize("spelling", ["0x{}", "{} ", "a{}", "{}\n", "\u0661{}"])
def test_keys_have_one_spelling(spelling: str) -> None:
    """What lenient hex decoders take is refused: prefixes, white space within, odd lengths."""
    values = header_values()
    client, model = values["x-client-pub-key"], values["x-model-pub-key"]
    assert client is not None
    assert model is not None
    split = spelling.format(client[:32]) + client[32:]
    assert error(values | {"x-client-pub-key": split}) == "e2ee_invalid_public_key"
    split = spelling.format(model[:32]) + model[32:]
    assert error(values | {"x-model-pub-key": split}) == "e2ee_invalid_public_key"


@pytest.mark.parametrize(
    "value", ["+17", "-1", "1_700", "017", "0", "1 7", "1.5", "1e9", "\u0661\u0667", "1" * 13, "1700000000\n", "x"]
)
def test_timestamps_have_one_spelling(value: str) -> None:
    """What int() takes beyond plain ASCII digits is refused."""
    assert error(header_values() | {"x-e2ee-timestamp": value}) == "e2ee_invalid_timestamp"


@pytest.mark.parametrize("value", ["a" * 15, "a" * 129, "a" * 16 + "|", "a" * 16 + "\n", "a b" * 8, "ä" * 16])
def test_nonces_have_one_alphabet(value: str) -> None:
    """A nonce cannot run into the next part of the associated data."""
    assert error(header_values() | {"x-e2ee-nonce": value}) == "e2ee_invalid_nonce"


def test_the_longest_nonce_and_timestamp_pass() -> None:
    """128 characters of all kinds, and 12 digits."""
    nonce = ("aZ09._~-" * 16)[:128]
    got = read(header_values() | {"x-e2ee-nonce": nonce, "x-e2ee-timestamp": "9" * 12})
    assert got is not None
    assert (got.nonce, got.timestamp) == (nonce, 999_999_999_999)


def test_a_retired_key_is_no_key() -> None:
    """A key counts up to its last second, beside the current one."""
    old = keys_from_secrets("old", b"\x05" * 32, b"\x05" * 32, not_after=NOW)
    keys = ServerKeys((*KEYS.keys, *old))
    values = {k: [v] for k, v in header_values().items() if v is not None} | {"x-model-pub-key": [old[1].wire_hex]}
    got = read_e2ee_headers(values, keys, policy(), NOW)
    assert got is not None
    assert got.server_key is old[1]
    with pytest.raises(ApiError) as caught:
        read_e2ee_headers(values, keys, policy(), NOW + 1)
    assert caught.value.code == "e2ee_model_key_mismatch"
