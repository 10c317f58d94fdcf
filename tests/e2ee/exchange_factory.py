"""Encrypted exchanges of both algos and versions, and the client's side of them, for the tests of either direction."""

import traceback
from collections.abc import Iterator
from typing import Any

from chutes_autopilot.e2ee.curves import Algo, public_key, wire_hex
from chutes_autopilot.e2ee.fields import FieldOpener, FieldSealer
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange, read_e2ee_headers
from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets

ALGOS: list[Algo] = ["ecdsa", "ed25519"]
NOW = 1_700_000_000
NONCE = "n1700000000abcd1234abcd"
MODEL = "vendor/Model-1"
SERVER_PRIVATE = bytes(range(1, 33))
CLIENT_PRIVATE = bytes(range(65, 97))
KEYS = ServerKeys(keys_from_secrets("2026-09", SERVER_PRIVATE, SERVER_PRIVATE))
MARKER = "Top|Secret"
"""Text of a prompt or an answer; with "|" it cannot pass for an id, a model, a role or a member's name."""


def policy(**changes: Any) -> E2EEPolicy:
    settings = {
        "require": False,
        "allow_v1": True,
        "strict": False,
        "uncovered": "reject",
        "max_fields": 256,
        "window": 300,
        "skew": 30,
    }
    return E2EEPolicy(**(settings | changes))


def header_values(algo: Algo = "ed25519", version: int = 2) -> dict[str, str | None]:
    """The headers of a good request by lower-case name."""
    return {
        "x-signing-algo": algo,
        "x-client-pub-key": wire_hex(algo, public_key(algo, CLIENT_PRIVATE)),
        "x-model-pub-key": KEYS.current(algo).wire_hex,
        "x-e2ee-version": str(version),
        "x-e2ee-nonce": NONCE if version == 2 else None,
        "x-e2ee-timestamp": str(NOW) if version == 2 else None,
    }


def exchange(algo: Algo = "ed25519", version: int = 2) -> SealedExchange:
    values = {name: [value] for name, value in header_values(algo, version).items() if value is not None}
    made = read_e2ee_headers(values, KEYS, policy(), NOW)
    assert made is not None
    return made


def sealed_text(text: str, m: int = 0, c: int | str = "-", algo: Algo = "ed25519", version: int = 2) -> str:
    """A field as a client seals it to the server."""
    aad = f"v2|req|algo={algo}|model={MODEL}|m={m}|c={c}|n={NONCE}|ts={NOW}" if version == 2 else ""
    return FieldSealer(algo, KEYS.current(algo).public).seal(text, aad.encode())


class Client:
    """Opens what the service sealed, by the protocol's text and not by the code under test."""

    def __init__(self, sealed: SealedExchange) -> None:
        self.algo = sealed.algo
        self.version = sealed.version
        self.opener = FieldOpener(sealed.algo, CLIENT_PRIVATE)

    def texts(self, answer: dict[str, Any]) -> Iterator[tuple[int, str, str | None]]:
        """Choice, member and text of every covered member of an answer or a chunk."""
        for position, choice in enumerate(answer["choices"]):
            stream = answer["object"] == "chat.completion.chunk"
            place = choice["index"] if stream and "index" in choice else position
            message = choice.get("delta" if stream else "message") or {}
            for name in ("content", "reasoning_content", "reasoning"):
                if name in message:
                    value = message[name]
                    yield place, name, None if value is None else self.open(value, answer, place, name)

    def open(self, value: str, answer: dict[str, Any], place: int, name: str) -> str:
        aad = (
            f"v2|resp|algo={self.algo}|model={answer['model']}|id={answer['id']}|choice={place}|field={name}"
            f"|n={NONCE}|ts={NOW}"
        )
        return self.opener.open(value, aad.encode() if self.version == 2 else b"")


def told(error: BaseException) -> str:
    """All that printing an exception can tell, after making sure that it hides no other one."""
    assert error.__cause__ is None
    assert error.__context__ is None
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
