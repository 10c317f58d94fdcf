"""What one try of a request binds its ciphertexts to: a key pair for the answer, a nonce, a time."""

import secrets
from typing import Literal

from attrs import field, frozen

from chutes_autopilot.e2ee.curves import SECP256K1_ORDER, Algo, public_key, wire_hex
from chutes_autopilot.e2ee.fields import FieldOpener, FieldSealer, request_aad, response_aad

Version = Literal[1, 2]


@frozen
class Exchange:
    """One try; repeating a request takes a new one, or the service would refuse it as a replay.

    :param private: the client's key for this answer alone: an Ed25519 seed or a secp256k1 scalar, 32 bytes.
    :param nonce: empty in version 1, as ``timestamp`` is 0.
    :param timestamp: Unix seconds.
    """

    algo: Algo
    version: Version
    private: bytes = field(repr=False)
    nonce: str
    timestamp: int

    @classmethod
    def new(cls, algo: Algo, version: Version, now: float) -> "Exchange":
        """A fresh key and, in version 2, a fresh nonce.

        :param now: Unix time.
        """
        private = secrets.token_bytes(32)
        if algo == "ecdsa":
            private = (1 + secrets.randbelow(SECP256K1_ORDER - 1)).to_bytes(32, "big")
        if version == 1:
            return cls(algo, 1, private, "", 0)
        return cls(algo, 2, private, secrets.token_hex(16), int(now))

    def headers(self, server_key_hex: str) -> tuple[tuple[str, str], ...]:
        """The request headers (protocol section 3).

        :param server_key_hex: the key the request is sealed to, as the report writes it.
        """
        common = (
            ("X-Signing-Algo", self.algo),
            ("X-Client-Pub-Key", wire_hex(self.algo, public_key(self.algo, self.private))),
            ("X-Model-Pub-Key", server_key_hex),
            ("X-E2EE-Version", str(self.version)),
        )
        if self.version == 1:
            return common
        return (*common, ("X-E2EE-Nonce", self.nonce), ("X-E2EE-Timestamp", str(self.timestamp)))

    def seal(self, server_public: bytes, text: str, model: str, m: int) -> str:
        """The ciphertext of a message's whole content, under an ephemeral key of its own.

        :param server_public: the service's key in normal form.
        :param m: the message's position.
        """
        aad = b"" if self.version == 1 else request_aad(self.algo, model, m, None, self.nonce, self.timestamp)
        return FieldSealer(self.algo, server_public).seal(text, aad)

    def opener(self) -> "AnswerFields":
        """What opens the fields of the answer."""
        return AnswerFields(self, FieldOpener(self.algo, self.private))


@frozen
class AnswerFields:
    """Opens the encrypted fields of one answer."""

    _exchange: Exchange
    _opener: FieldOpener

    def open(self, sealed: str, model: str, id: str, choice: int, name: str) -> str:
        """The text of a field; raises FieldNotOpened.

        :param model: as the answer states it, like ``id``.
        :param choice: its position or index, see response_aad.
        :param name: the member that the field stands in.
        """
        of = self._exchange
        if of.version == 1:
            return self._opener.open(sealed, b"")
        return self._opener.open(sealed, response_aad(of.algo, model, id, choice, name, of.nonce, of.timestamp))
