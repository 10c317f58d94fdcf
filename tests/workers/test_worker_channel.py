"""How parent and workers talk: messages arrive whole and in order, questions are answered or given up."""

from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from chutes_autopilot.e2ee.server_keys import ServerKeys, keys_from_secrets
from chutes_autopilot.errors import ApiError
from chutes_autopilot.observe.record import AttemptRecord, RequestRecord
from chutes_autopilot.policy.catalog import CatalogEntry
from chutes_autopilot.policy.model_offers import Offer
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.reasons import Reasons
from chutes_autopilot.relay.explain import Explained
from chutes_autopilot.settings import read_settings
from chutes_autopilot.workers.channel import ANSWER_SECONDS, Channel, encoded
from chutes_autopilot.workers.link import ParentLink
from chutes_autopilot.workers.messages import (
    Banned,
    Begin,
    Claim,
    Drain,
    Finished,
    Message,
    Reply,
    Sources,
    State,
    ToParent,
    ToWorker,
)
from chutes_autopilot.workers.routing import ToldRouting
from chutes_autopilot.workers.sealing import CLAIMED, ForwardedClaims, HandedKeys, judge, keys_message

RANKED = Ranked("a/A", 1.5, 2.0, 0.1, 0.0, 0.0, 0.1, 0.0, "a/A", None)
STATE = State(
    3, 10.5, 11.5, 7, 1, (RANKED,), (CatalogEntry("a/A", None, b'{"id": "a/A"}'),), 2, {"a/A": Offer(frozenset("x"))}
)
REASONS = Reasons("a/A", "alias", ("a/A",), (), sticky="a/A", needs=("tools",))
RECORD = RequestRecord("id", 1.0, attempts=[AttemptRecord("a/A", 503, "503", 1.5)], status=200, outcome="complete")


class Side(Channel):
    """One side of the talk, and what it was told."""

    def __init__(self, expected: Any) -> None:
        self.clock = Clock()
        self.heard: list[Any] = []
        self.ended = 0
        super().__init__(expected, self.clock, self.heard.append, self._end)
        self.wire = StringTransport()
        self.makeConnection(self.wire)

    def _end(self) -> None:
        self.ended += 1

    def said(self) -> Any:
        """The last message it has sent."""
        sent = self.wire.value()
        self.wire.clear()
        return msgspec.msgpack.decode(sent[4:], type=ToParent | Reply)


@given(st.lists(st.integers(1, 40)))
def test_messages_arrive_whole_in_whatever_pieces(sizes: list[int]) -> None:
    """However the bytes are cut, each message is told once, in its order, equal to what was sent."""
    told: list[Message] = [STATE, Drain(), Banned(b"k", 60.0, 1), Drain(), Banned(b"k" * 5000, 2.5, 2)]
    side, left = Side(ToWorker), b"".join(map(encoded, told))
    for size in sizes:
        side.dataReceived(left[:size])
        left = left[size:]
    side.dataReceived(left)
    assert side.heard == told


def test_a_finished_request_is_told_as_it_is() -> None:
    """A record arrives with its attempts and times, and with its explanation where that was told."""
    side, decision = Side(ToParent), attrs.evolve(Explained(RECORD, None).decision(), reasons=REASONS)
    side.dataReceived(encoded(Finished([RECORD, RECORD], [decision])))
    (told,) = side.heard
    routing = ToldRouting()
    routing.hear(told)
    routing.hear(Finished([RECORD], [], 7))
    assert routing.decisions.seen == 2 + 7 + 1
    assert [each.decision() for each in routing.decisions.newest(9)] == [
        Explained(RECORD, None).decision(),
        decision,
        decision,
    ]
    assert str(told.records[0]) == str(RECORD)
    assert told.records[0].fields() == RECORD.fields()


def test_the_requests_of_several_workers_are_listed_by_their_arrival() -> None:
    """Whoever told of them first."""
    routing = ToldRouting()
    for arrivals in ((1.0, 4.0, 5.0), (2.0, 3.0, 6.0)):
        routing.hear(Finished([RequestRecord(f"at {at}", at) for at in arrivals], []))
    assert [each.record.received for each in routing.decisions.newest(4)] == [6.0, 5.0, 4.0, 3.0]


def test_settings_survive_what_is_no_utf8() -> None:
    """What Python made surrogates of is the same text in another process."""
    side = Side(ToParent | Sources)
    side.dataReceived(encoded(Sources.of({"TOKEN": "t\udcff"}, {"/pa\udce9th": "text"})))
    assert side.heard[0].texts() == ({"TOKEN": "t\udcff"}, {"/pa\udce9th": "text"})


def test_no_message_shows_what_it_holds() -> None:
    """Settings, keys and clients stay out of logs and tracebacks."""
    for message in (Sources.of({"TOKEN": "hunter2"}, {}), Banned(b"hunter2", 1.0, 1), STATE):
        assert repr(message) == f"{type(message).__name__}(...)"


def test_a_question_has_one_answer() -> None:
    """The answer by its id; None where it is late, and what comes later is nobody's."""
    side, answers = Side(ToWorker), []
    for _ in range(3):
        side.ask(lambda number: Claim(number, "n", 1)).addCallback(answers.append)
    side.dataReceived(encoded(Reply(2, b"two")) + encoded(Reply(9, b"?")))
    assert answers == [b"two"]
    side.clock.advance(ANSWER_SECONDS)
    side.dataReceived(encoded(Reply(1, b"late")))
    assert answers == [b"two", None, None]
    assert not side.clock.getDelayedCalls()


def test_the_end_of_the_other_side_answers_all() -> None:
    """Open questions have no answer then, new ones neither, and the end is told once."""
    side, answers = Side(ToWorker), []
    side.ask(lambda number: Claim(number, "n", 1)).addCallback(answers.append)
    side.connectionLost()
    side.ask(lambda number: Claim(number, "n", 1)).addCallback(answers.append)
    assert (answers, side.ended, side.clock.getDelayedCalls()) == ([None, None], 1, [])


def test_it_says_when_the_other_side_is_slow() -> None:
    """From the time when too much waits until it is taken."""
    side = Side(ToWorker)
    side.wire.producer.pauseProducing()
    full = side.full
    side.wire.producer.resumeProducing()
    assert (full, side.full) == (True, False)


def claimed(side: Side, reply: bytes | None) -> str | None:
    """What becomes of a claim, by what the parent says to it."""
    results: list[Any] = []
    ForwardedClaims(side, 0.0).claim("name", 99).addBoth(results.append)
    side.dataReceived(encoded(Reply(side.said().id, reply)))
    return None if results == [None] else results[0].value.code


def test_claims_are_judged_by_the_parent_and_fail_closed() -> None:
    """Made, refused with the parent's own error, or unavailable where nobody answers."""

    class Refusing:
        async def claim(self, name: str, expiry: int) -> None:
            raise ApiError("e2ee_replay_detected", "No.", headers=((b"Retry-After", b"3"),))

    replies: list[bytes] = []
    judge(Refusing(), Claim(1, "name", 99), replies.append)
    side = Side(ToWorker)
    assert claimed(side, CLAIMED) is None
    assert claimed(side, replies[0]) == "e2ee_replay_detected"
    assert claimed(side, None) == "e2ee_replay_unavailable"


@pytest.mark.parametrize(("redis", "seconds"), [({"REDIS_URL": "redis://r"}, 9.0), ({}, 0.0)])
def test_a_claim_has_the_time_that_redis_has(redis: dict[str, str], seconds: float) -> None:
    """E2EE_REDIS_TIMEOUT_MS holds however long it is: the parent's own word is waited for beyond that."""
    settings = read_settings({"E2EE_REDIS_TIMEOUT_MS": "9000", **redis}, lambda path: "")
    side, results = Side(ToWorker), list[Any]()
    begin = Begin(1, 2, (), Sources((), ()), b"", False, None, None, None)
    link = ParentLink(begin, side, side.clock, ())
    link.claims(settings).claim("name", 99).addErrback(results.append)
    side.clock.advance(seconds + ANSWER_SECONDS - 0.1)
    assert results == []
    side.clock.advance(0.1)
    assert [failed.value.code for failed in results] == ["e2ee_replay_unavailable"]


def test_keys_are_handed_down_whole() -> None:
    """A worker has the same keys in the same order, and none before."""
    pairs = [
        keys_from_secrets(name, bytes([n]) * 32, bytes([n]) * 32, end)
        for n, name, end in ((1, "new", None), (2, "old", 12345))
    ]
    keys = ServerKeys(tuple(key for pair in pairs for key in pair))
    handed, side = HandedKeys(), Side(ToWorker)
    assert not handed.there
    side.dataReceived(encoded(keys_message(keys)))
    handed.hand(side.heard[0])
    assert handed.current == keys
    assert [key.sign("x") for key in handed.current.keys if key.algo == "ed25519"] == [
        key.sign("x") for key in keys.keys if key.algo == "ed25519"
    ]
