"""What is kept of a complete answer of the Chutes route, for its signature and its receipt."""

from collections.abc import Callable
from typing import Protocol

import attrs

from chutes_autopilot.e2ee.receipt import Attested, build_receipt
from chutes_autopilot.e2ee.request_headers import SealedExchange
from chutes_autopilot.e2ee.server_keys import ServerKeys
from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.record import RequestRecord
from chutes_autopilot.relay.answer_filter import AnswerFilter
from chutes_autopilot.web.signatures import SignedExchange


@attrs.frozen(repr=False)
class AskedFor:
    """A request as far as its answer's signature depends on it.

    :param caller: what the caller is known by.
    :param request_sha256: hex, of the bytes as received.
    :param exchange: None of a plain request.
    """

    caller: bytes
    request_sha256: str
    exchange: SealedExchange | None


class AnswerStore(Protocol):
    """Where signed exchanges are kept for a while."""

    def put(self, key: tuple[bytes, str], value: SignedExchange, /) -> None: ...


@attrs.define(eq=False)
class KeptAnswers:
    """Remembers two hashes of each complete answer, and what its receipt says.

    :param unix_time: seconds.
    :param chute_of: the chute's id by a model's name, as far as the catalog knows it.
    """

    store: AnswerStore
    keys: Callable[[], ServerKeys]
    unix_time: Callable[[], float]
    chute_of: Callable[[str], str | None]

    def __call__(self, asked: AskedFor, model: str, answer: AnswerFilter, record: RequestRecord) -> None:
        """Keep one answer; without an id nobody could ask for it.

        :param model: as the client sent it.
        """
        if answer.chat_id is None:
            return
        try:
            key = asked.exchange.server_key if asked.exchange is not None else self.keys().current("ecdsa")
        except ApiError:  # a plain request needs no keys, and without them nobody can sign for its answer
            return
        response_sha256 = answer.response_sha256
        instance_id, key_sha256, attested = _instance(answer)
        receipt = build_receipt(
            id=answer.chat_id,
            time=int(self.unix_time()),
            requested_model=model,
            served_model=record.selected,
            chute_id=None if record.selected is None else self.chute_of(record.selected),
            instance_id=instance_id,
            instance_key_sha256=None if key_sha256 is None else key_sha256.hex(),
            attestation=None if attested is None else attested.level,
            evidence_sha256=None if attested is None else attested.evidence_sha256,
            attempts=[(attempt.model, attempt.failure or str(attempt.status)) for attempt in record.attempts],
            request_sha256=asked.request_sha256,
            response_sha256=response_sha256,
        )
        text = f"{asked.request_sha256}:{response_sha256}"
        self.store.put((asked.caller, answer.chat_id), SignedExchange(text, key.id, receipt))


def _instance(answer: AnswerFilter) -> tuple[str | None, bytes | None, Attested | None]:
    """The instance that a sealed attempt ended at, and what held of its key then; over TLS nobody knows it."""
    inside = answer.inside
    known = ("instance_id", "instance_key_sha256", "attested")
    instance_id, key_sha256, attested = (getattr(inside, name, None) for name in known)
    return instance_id, key_sha256, attested
