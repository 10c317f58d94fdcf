"""How an instance reads the clear JSON of a sealed request, and how a refusal of the sealed side is said."""

from base64 import b64decode

import msgspec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from chutes_autopilot.demo.catalog import SimulatedModel
from chutes_autopilot.demo.chat import ChatCall, ChatRefused, read_chat
from chutes_autopilot.demo.chute_answers import content_refused
from chutes_autopilot.demo.outcome import Refusal, refusal

SEALED_PATH = "/v1/chat/completions"


class Refused(Exception):
    """The request gets this error answer."""

    def __init__(self, answer: Refusal) -> None:
        super().__init__(answer)
        self.answer = answer


def refuse(status: int, detail: object) -> Refused:
    """What to raise for an error in the platform's shape."""
    return Refused(refusal(status, detail))


class _Reply(msgspec.Struct):
    """The fields that an instance needs before it reads a chat request."""

    e2e_response_pk: str
    model: str


_decode = msgspec.json.Decoder(_Reply).decode


def read_opened(opened: bytes, path: str, model: SimulatedModel) -> tuple[ChatCall, MLKEM768PublicKey]:
    """The call and the key to seal its answer to.

    :raises Refused: for another path or model than the instance's own, and whatever it could not read.
    """
    try:
        asked = _decode(opened)
        public = MLKEM768PublicKey.from_public_bytes(b64decode(asked.e2e_response_pk, validate=True))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise Refused(content_refused()) from None
    if asked.model != model.name or path != SEALED_PATH:
        raise Refused(content_refused())
    try:
        return read_chat(opened, {model.name: model}), public
    except ChatRefused as refused:
        if refused.status >= 500:
            raise refuse(500, f"Instance returned status {refused.status}") from None
        raise Refused(content_refused()) from None
