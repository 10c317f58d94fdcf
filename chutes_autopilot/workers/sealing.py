"""The keys and the claims of encrypted requests where several workers serve as one: the parent has them.

Apart from the rest of the package, as it brings all of encryption along.
"""

from collections.abc import Callable

import msgspec
from attrs import define
from twisted.internet.defer import Deferred
from zope.interface import implementer

from chutes_autopilot.e2ee.replay import REPEAT
from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets, secrets_of
from chutes_autopilot.e2ee_keys import KeyHolder
from chutes_autopilot.errors import ApiError, e2ee_error
from chutes_autopilot.interfaces import IReplayClaims
from chutes_autopilot.workers.channel import ANSWER_SECONDS, Channel
from chutes_autopilot.workers.messages import Claim, KeyPair, Keys, Refusal

CLAIMED = b""
"""The reply to a claim that nobody had made before."""

_encode = msgspec.msgpack.Encoder().encode
_refusal = msgspec.msgpack.Decoder(Refusal).decode


class HandedKeys(KeyHolder):
    """A worker's: what the parent has in force; it may be handed anew at any time."""

    persistent = True

    def __init__(self) -> None:
        super().__init__(None)

    def hand(self, message: Keys) -> None:
        """Use these from now on."""
        pairs = [keys_from_secrets(k.id, k.ecdsa, k.ed25519, k.not_after) for k in message.generations]
        self.take(ServerKeys(tuple(key for pair in pairs for key in pair)))


def keys_message(keys: ServerKeys) -> Keys:
    """Keys on their way to a worker: over the channel and nowhere else."""
    return Keys(tuple(KeyPair(*generation) for generation in secrets_of(keys)))


@implementer(IReplayClaims)
@define(eq=False)
class ForwardedClaims:
    """A worker's: all claims are made in one place, or a request could be replayed at another worker.

    :param store_seconds: how long the parent itself may wait for the store of claims.
    """

    _channel: Channel
    store_seconds: float

    def claim(self, name: str, expiry: int) -> Deferred[None]:
        """As of IReplayClaims; a parent that does not answer is as good as a claim that cannot be kept."""
        within = self.store_seconds + ANSWER_SECONDS
        return self._channel.ask(lambda number: Claim(number, name, expiry), within).addCallback(_judged)


def _judged(reply: bytes | None) -> None:
    if reply is None:
        raise e2ee_error(
            "e2ee_replay_unavailable",
            f"No nonce can be claimed at the moment. Later: {REPEAT}",
            headers=((b"Retry-After", b"1"),),
        )
    if reply != CLAIMED:
        refusal = _refusal(reply)
        raise e2ee_error(refusal.code, refusal.message, headers=refusal.headers)


def judge(claims: IReplayClaims, message: Claim, answer: Callable[[bytes], None]) -> Deferred[None]:
    """The parent's: claim, and answer the worker."""

    async def claim() -> None:
        value = CLAIMED
        try:
            await claims.claim(message.name, message.expiry)
        except ApiError as error:
            value = _encode(Refusal(error.code, error.message, error.headers))
        answer(value)

    return Deferred.fromCoroutine(claim())
