"""The six headers that make a request an encrypted one, judged in one fixed order before anything else is done.

Existing clients know the service by the errors they get here, so the order of the checks is part of the protocol. A
request with any of the six headers is never served in clear.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from attrs import field, frozen

from chutes_autopilot.e2ee.curves import Algo, InvalidKey, normal_form
from chutes_autopilot.e2ee.fields import FieldSealer
from chutes_autopilot.e2ee.server_keys import ServerKey, ServerKeys
from chutes_autopilot.errors import ApiError, e2ee_error

ALGO = "x-signing-algo"
CLIENT_KEY = "x-client-pub-key"
MODEL_KEY = "x-model-pub-key"
VERSION = "x-e2ee-version"
NONCE = "x-e2ee-nonce"
TIMESTAMP = "x-e2ee-timestamp"
E2EE_HEADERS = (ALGO, CLIENT_KEY, MODEL_KEY, VERSION, NONCE, TIMESTAMP)
"""Lower-case names; none of them ever goes upstream."""

# Decoders of hex accept white space, and int() accepts "+17", "1_700" and other scripts' digits: one reading only.
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_NONCE = re.compile(r"[A-Za-z0-9._~-]{16,128}")
_TIMESTAMP = re.compile(r"[1-9][0-9]{0,11}")

Uncovered = Literal["reject", "drop", "clear"]
"""What becomes of content that the protocol cannot encrypt, tool calls for example (E2EE_UNCOVERED_FIELDS)."""


@frozen
class E2EEPolicy:
    """The operator's switches of encryption between client and service.

    :param require: E2EE_REQUIRE, refuse plain requests.
    :param allow_v1: E2EE_ALLOW_V1, accept version 1, which has no replay protection.
    :param strict: E2EE_STRICT, the version header must say what the other headers mean.
    :param uncovered: E2EE_UNCOVERED_FIELDS.
    :param max_fields: E2EE_MAX_FIELDS, encrypted fields of one request.
    :param window: E2EE_REPLAY_WINDOW_SECONDS, how far a timestamp may be from now.
    :param skew: E2EE_REPLAY_SKEW_SECONDS, how long a nonce is remembered beyond that.
    """

    require: bool
    allow_v1: bool
    strict: bool
    uncovered: Uncovered
    max_fields: int
    window: int
    skew: int


@frozen
class SealedExchange:
    """What the headers of one encrypted request fix for it and for its answer.

    :param version: 1 or 2.
    :param nonce: X-E2EE-Nonce; None in version 1.
    :param timestamp: X-E2EE-Timestamp in Unix seconds; None in version 1.
    :param server_key: the key the request is sealed to; it opens the fields and signs the answer.
    :param sealer: seals the answer; the exchange with the client's key is done.
    """

    algo: Algo
    version: Literal[1, 2]
    nonce: str | None = field(repr=False)
    timestamp: int | None = field(repr=False)
    server_key: ServerKey = field(repr=False)
    sealer: FieldSealer = field(repr=False)


def read_e2ee_headers(
    values: Mapping[str, Sequence[str]], keys: ServerKeys, policy: E2EEPolicy, now: float
) -> SealedExchange | None:
    """Judge the headers of a request; None where it is a plain one.

    The client's key is validated in full, with the exchange whose result seals the answer.

    :param values: all values by lower-case header name; others than the six are passed over.
    :param now: Unix time.
    :raises ApiError: e2ee_required, invalid_e2ee_request, e2ee_header_missing, e2ee_invalid_signing_algo,
        e2ee_invalid_public_key, e2ee_model_key_mismatch, e2ee_invalid_version, e2ee_invalid_nonce,
        e2ee_invalid_timestamp; the first of them in the protocol's order.
    """
    given = {name: found for name in E2EE_HEADERS if (found := values.get(name))}
    if not given:
        if policy.require:
            raise e2ee_error("e2ee_required", "This service takes encrypted requests only.")
        return None
    for name, found in given.items():
        if len(found) > 1:
            raise e2ee_error("invalid_e2ee_request", "An encryption header is given more than once.", param=name)
    single = {name: found[0].strip(" \t") for name, found in given.items()}
    _need(single, ALGO, CLIENT_KEY, MODEL_KEY)
    algo = _read_algo(single[ALGO])
    sealer = _read_client_key(algo, single[CLIENT_KEY])
    server_key = _read_model_key(algo, single[MODEL_KEY], keys, now)
    version = _read_version(single, policy)
    if version == 1:
        return SealedExchange(algo, 1, None, None, server_key, sealer)
    _need(single, NONCE, TIMESTAMP)
    nonce, timestamp = single[NONCE], single[TIMESTAMP]
    if not _NONCE.fullmatch(nonce):
        raise e2ee_error(
            "e2ee_invalid_nonce", "X-E2EE-Nonce must be 16 to 128 characters of A-Z a-z 0-9 . _ ~ -.", param=NONCE
        )
    if not _TIMESTAMP.fullmatch(timestamp):
        raise e2ee_error(
            "e2ee_invalid_timestamp", "X-E2EE-Timestamp must be Unix seconds in plain digits.", param=TIMESTAMP
        )
    return SealedExchange(algo, 2, nonce, int(timestamp), server_key, sealer)


def _need(single: Mapping[str, str], *names: str) -> None:
    for name in names:
        if not single.get(name):
            raise e2ee_error("e2ee_header_missing", "An encryption header is missing or empty.", param=name)


def _read_algo(value: str) -> Algo:
    match value.lower():
        case "ecdsa":
            return "ecdsa"
        case "ed25519":
            return "ed25519"
    raise e2ee_error("e2ee_invalid_signing_algo", "X-Signing-Algo must be ecdsa or ed25519.", param=ALGO)


def _read_client_key(algo: Algo, value: str) -> FieldSealer:
    if _HEX.fullmatch(value):
        with suppress(InvalidKey):
            return FieldSealer(algo, normal_form(algo, bytes.fromhex(value)))
    raise _invalid_key(CLIENT_KEY)


def _read_model_key(algo: Algo, value: str, keys: ServerKeys, now: float) -> ServerKey:
    if not _HEX.fullmatch(value):
        raise _invalid_key(MODEL_KEY)
    key = keys.find(algo, bytes.fromhex(value), now)
    if key is None:
        raise e2ee_error(
            "e2ee_model_key_mismatch",
            "X-Model-Pub-Key is no key of this service: fetch /v1/attestation/report again.",
            param=MODEL_KEY,
        )
    return key


def _invalid_key(name: str) -> ApiError:
    return e2ee_error(
        "e2ee_invalid_public_key", "The key must be a valid public key of the algorithm, in hex.", param=name
    )


def _read_version(single: Mapping[str, str], policy: E2EEPolicy) -> Literal[1, 2]:
    """Which version the headers mean: a nonce and a timestamp mean version 2, also beside a version header of 1."""
    version = single.get(VERSION, "")
    if version not in ("", "1", "2"):
        raise _invalid_version("X-E2EE-Version must be 1 or 2.")
    replay_headers = sum(bool(single.get(name)) for name in (NONCE, TIMESTAMP))
    if replay_headers == 1:
        _need(single, NONCE, TIMESTAMP)
    if policy.strict and (not version or (version == "1" and replay_headers)):
        raise _invalid_version("X-E2EE-Version must be given and fit the other headers.")
    if version == "2" or replay_headers:
        return 2
    if not policy.allow_v1:
        raise _invalid_version("Version 1 is not accepted here: send version 2, with a nonce and a timestamp.")
    return 1


def _invalid_version(message: str) -> ApiError:
    return e2ee_error("e2ee_invalid_version", message, param=VERSION)
