"""Encrypted requests are read and opened without holding the reactor, and nothing is claimed too early."""

import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred

from chutes_autopilot.e2ee.fields import FieldSealer, request_aad
from chutes_autopilot.e2ee.request_headers import E2EEPolicy, SealedExchange
from chutes_autopilot.e2ee.server_keys import ephemeral_keys
from chutes_autopilot.errors import ApiError
from chutes_autopilot.storage.claims import MemoryClaims
from chutes_autopilot.web.chutes import BYTES_AT_ONCE, Encryption, OpenedRequest

NOW = 1_800_000_000
NONCE = "n" * 20
POLICY = E2EEPolicy(require=False, allow_v1=True, strict=False, uncovered="reject", max_fields=256, window=300, skew=30)
KEYS = ephemeral_keys()


class Opening:
    """A request being opened, where the thread is the test's."""

    def __init__(self, *texts: str) -> None:
        key = KEYS.current("ed25519")
        sealer = FieldSealer("ed25519", key.public)
        exchange = SealedExchange("ed25519", 2, NONCE, NOW, key, sealer)
        contents = [sealer.seal(text, request_aad("ed25519", "m", m, None, NONCE, NOW)) for m, text in enumerate(texts)]
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": each} for each in contents]})
        self.claims = MemoryClaims(10, lambda: NOW)
        self.work: list[tuple[Callable[[], Any], Deferred[Any]]] = []
        nothing = cast(Any, None)
        self.encryption = Encryption(
            lambda: KEYS, POLICY, nothing, self.claims, None, lambda: NOW, nothing, self.in_thread
        )
        self.opened: list[OpenedRequest] = []
        self.errors: list[Any] = []
        self.opening = opening = Deferred.fromCoroutine(self.encryption.open(body.encode(), exchange))
        opening.addCallbacks(self.opened.append, lambda failure: self.errors.append(failure.value))

    def in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        self.work.append((work, Deferred()))
        return self.work[-1][1]

    def work_on(self) -> None:
        (work, done), *self.work = self.work
        try:
            result = work()
        except ApiError as error:
            done.errback(error)
        else:
            done.callback(result)


def test_a_large_request_is_opened_in_a_thread() -> None:
    """However few fields it has: its first field before the claim, what it is made of and its body after it."""
    opening = Opening("x" * BYTES_AT_ONCE, "Hello")
    assert (len(opening.work), len(opening.claims)) == (1, 0)
    opening.work_on()
    assert (len(opening.work), len(opening.claims), opening.opened) == (1, 1, [])
    opening.work_on()
    (opened,) = opening.opened
    assert [each["content"] for each in json.loads(opened.body)["messages"]] == ["x" * BYTES_AT_ONCE, "Hello"]
    assert opened.read is not None
    assert (opened.read.model, opened.read.data) == ("m", opened.body)


@pytest.mark.parametrize(("fields", "works"), [(1, 0), (8, 0), (9, 1)])
def test_a_small_request_is_opened_at_once_unless_it_has_many_fields(fields: int, works: int) -> None:
    """It is read by the relay then, as any other."""
    opening = Opening(*["Hello"] * fields)
    assert (len(opening.work), len(opening.claims)) == (works, 1)
    while opening.work:
        opening.work_on()
    assert opening.opened[0].read is None


def test_what_fails_after_the_claim_asks_for_a_new_nonce() -> None:
    """It is never given back."""
    opening = Opening("x" * BYTES_AT_ONCE, "Hello")
    opening.work_on()
    opening.work[0][1].errback(ApiError("invalid_body", "It fails."))
    assert [error.message for error in opening.errors] == ["It fails. To try again, send a new nonce."]


def test_a_client_that_left_has_no_work_left_in_the_queue_of_the_threads() -> None:
    """Nor does its body wait there."""
    opening = Opening("x" * BYTES_AT_ONCE)
    opening.opening.cancel()
    ((work, _),) = opening.work
    assert work() is None
