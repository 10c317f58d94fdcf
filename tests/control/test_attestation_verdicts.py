import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from hashlib import sha256
from itertools import count
from typing import Any

import pytest
from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from chutes_autopilot.control.attestation import (
    FIRST_RETRY,
    LAST_RETRY,
    MAX_AT_ONCE,
    MIN_INTERVAL,
    AttestationService,
)
from chutes_autopilot.control.evidence_judge import (
    MEASUREMENTS_AGE,
    MEASUREMENTS_RETRY,
    AttestationRules,
    EvidenceJudge,
)
from chutes_autopilot.control.verdicts import MAX_CHUTES, MAX_INSTANCES, VerdictTable
from chutes_autopilot.e2ee.collateral import Collateral, Platform
from chutes_autopilot.e2ee.evidence import InstanceEvidence
from chutes_autopilot.e2ee.measurements import read_measurements
from chutes_autopilot.e2ee.tcb import TcbChecker
from chutes_autopilot.policy.catalog import Catalog, CatalogEntry
from chutes_autopilot.upstream.fetch import FetchError
from tests.e2ee.quote_factory import DAY, FMSPC, MEASUREMENTS, NOW, machine

TTL = 1000.0
DOWN = FetchError("status", "status 502")
MEASURED = json.dumps(MEASUREMENTS).encode()
NOT_MEASURED = json.dumps(MEASUREMENTS[:1]).encode()
CERTIFICATE = b64encode(machine().instance_der).decode()


def key(number: int) -> str:
    return b64encode(bytes([number]) * 1184).decode()


def digest(number: int) -> bytes:
    return sha256(bytes([number]) * 1184).digest()


class Platforms:
    """The API, the instances behind it, the provisioning cache, and whoever listens; all of it does as told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.keys: dict[str, int] = {}
        self.quote_changes: dict[str, Any] = {}
        self.failure: Exception | None = None
        self.held: list[Deferred[None]] = []
        self.hold = False
        self.asked: list[tuple[str, str]] = []
        self.list: bytes | Exception = MEASURED
        self.lists_asked = 0
        self.tcb_status = "UpToDate"
        self.platform_collateral: Collateral | Exception = Collateral("text", FMSPC, NOW - DAY, NOW + DAY)
        self.told: list[tuple[str, ...]] = []

    async def evidence(self, chute_id: str, nonce: str) -> dict[str, InstanceEvidence]:
        self.asked.append((chute_id, nonce))
        if self.hold:
            self.held.append(Deferred())
            await self.held[-1]
        if self.failure is not None:
            raise self.failure
        return {instance_id: self.quoted(instance_id, number, nonce) for instance_id, number in self.keys.items()}

    def quoted(self, instance_id: str, number: int, nonce: str) -> InstanceEvidence:
        quote = machine().quote(nonce=nonce, public_key=key(number), **self.quote_changes).join()
        return InstanceEvidence(instance_id, b64encode(quote).decode(), CERTIFICATE)

    async def measurements(self) -> bytes:
        self.lists_asked += 1
        if isinstance(self.list, Exception):
            raise self.list
        return self.list

    async def collateral(self, platform: Platform) -> Collateral:
        assert platform == Platform(FMSPC, "platform")
        if isinstance(self.platform_collateral, Exception):
            raise self.platform_collateral
        return self.platform_collateral

    def parse_quote(self, quote: bytes) -> Any:
        return type("Parsed", (), {"fmspc": lambda _: FMSPC, "ca": lambda _: "platform"})()

    class QuoteCollateralV3:
        from_json = str

    def verify(self, quote: bytes, collateral: str, now: int) -> Any:
        return type("Report", (), {"status": self.tcb_status})()

    def evidence_fetched(self, outcome: str, seconds: float) -> None:
        self.told.append(("fetched", outcome))

    def evidence_checked(self, outcome: str) -> None:
        self.told.append(("checked", outcome))

    def verdict_changed(self, chute_id: str, instance_id: str, state: str, detail: str) -> None:
        self.told.append(("changed", chute_id, instance_id, state, detail))


@pytest.fixture
def world() -> Platforms:
    return Platforms()


Start = Callable[..., AttestationService]


@pytest.fixture
def start(world: Platforms) -> Iterable[Start]:
    services = []

    def make(level: Any = "binding", **changes: Any) -> AttestationService:
        tcb = TcbChecker(world, frozenset(["UpToDate"])) if level == "quote+tcb" else None
        rules = AttestationRules(level, TTL, tcb=tcb, root_spki_sha256=machine().root_spki_sha256, **changes)
        collateral = world if tcb else None
        judge = EvidenceJudge(rules, world, collateral, world.clock.seconds, world.clock.seconds, execute)
        service = AttestationService(judge, world, world.clock, world.clock.seconds, world)
        service.startService()
        services.append(service)
        return service

    yield make
    for service in services:
        service.stopService()
    assert world.clock.getDelayedCalls() == []


def see(service: AttestationService, world: Platforms, chute_id: str = "c", **instances: int) -> None:
    """Instances appear with the keys of these numbers, are discovered, and the verifier has its turn."""
    world.keys.update(instances)
    service.seen(chute_id, [(instance_id, key(number)) for instance_id, number in instances.items()])
    world.clock.advance(1)


def test_nobody_is_usable_unseen(world: Platforms, start: Start) -> None:
    """Without discovery there are no verdicts and nothing is asked."""
    service = start()
    world.clock.advance(5)
    assert not service.usable("i", digest(1))
    assert not service.chute_usable("c")
    assert world.asked == []


def test_evidence_that_stands_makes_the_key_usable(world: Platforms, start: Start) -> None:
    """This instance with this key, and its chute; neither another key nor another instance."""
    service = start()
    service.seen("c", [("i", key(1))])
    assert not service.usable("i", digest(1))
    see(service, world, i=1)
    assert service.usable("i", digest(1))
    assert not service.usable("i", digest(2))
    assert not service.usable("j", digest(1))
    assert (service.chute_usable("c"), service.chute_usable("d")) == (True, False)
    assert world.told == [("fetched", "ok"), ("checked", "verified"), ("changed", "c", "i", "verified", "binding")]


def test_only_models_with_a_verified_instance_may_be_chosen(world: Platforms, start: Start) -> None:
    """By the catalog's chute ids; a model without one never."""
    service = start()
    see(service, world, i=1)
    entries = [CatalogEntry("m", "c", b"{}"), CatalogEntry("n", "d", b"{}"), CatalogEntry("o", None, b"{}")]
    assert service.verified_models(Catalog(tuple(entries))) == {"m"}


def test_every_question_has_a_nonce_of_its_own(world: Platforms, start: Start) -> None:
    """64 hexadecimal characters, never the same."""
    service = start()
    see(service, world, i=1)
    world.clock.advance(TTL / 2)
    nonces = {nonce for _, nonce in world.asked}
    assert len(nonces) == len(world.asked) == 2
    assert all(len(bytes.fromhex(nonce)) == 32 and nonce == nonce.lower() for nonce in nonces)


def test_a_verdict_is_renewed_at_half_its_life(world: Platforms, start: Start) -> None:
    """Not before, and then it holds anew, without discovery naming the instance again."""
    service = start()
    see(service, world, i=1)
    world.clock.advance(TTL / 2 - 2)
    assert len(world.asked) == 1
    for _ in range(6):
        world.clock.advance(TTL / 2)
        assert service.usable("i", digest(1))
    assert len(world.asked) == 7
    assert sum(one[0] == "changed" for one in world.told) == 1


@pytest.mark.parametrize("missing", ["fetch", "instance"])
def test_a_failed_fetch_leaves_the_verdict_until_it_expires(world: Platforms, start: Start, missing: str) -> None:
    """Whether the whole answer is missing or the instance's part of it; its life counts from the question."""
    service = start()
    see(service, world, i=1)
    asked_at = world.clock.seconds()
    if missing == "fetch":
        world.failure = DOWN
    else:
        world.keys.clear()
    while world.clock.seconds() < asked_at + TTL - 1:
        assert service.usable("i", digest(1))
        world.clock.advance(1)
    world.clock.advance(1)
    assert not service.usable("i", digest(1))
    assert not service.chute_usable("c")
    assert len(world.asked) > 2
    world.failure = None
    see(service, world, i=1)
    world.clock.advance(LAST_RETRY)
    assert service.usable("i", digest(1))


def test_the_life_of_a_verdict_counts_from_the_question(world: Platforms, start: Start) -> None:
    """An answer that takes minutes proves what was so when it was asked."""
    service = start()
    world.hold = True
    see(service, world, i=1)
    world.clock.advance(200)
    world.held.pop().callback(None)
    assert service.usable("i", digest(1))
    world.hold, world.failure = False, DOWN
    world.clock.advance(TTL - 201)
    assert service.usable("i", digest(1))
    world.clock.advance(1)
    assert not service.usable("i", digest(1))


def test_a_failed_check_revokes_at_once_and_for_good(world: Platforms, start: Start) -> None:
    """The verdict is gone, and better evidence for the same key changes nothing; other instances stay."""
    service = start()
    see(service, world, i=1, j=2)
    world.keys["i"] = 7
    world.clock.advance(TTL / 2)
    assert (service.usable("i", digest(1)), service.usable("j", digest(2))) == (False, True)
    assert ("changed", "c", "i", "refused", "binding") in world.told
    world.keys["i"] = 1
    for _ in range(4):
        service.seen("c", [("i", key(1))])
        world.clock.advance(TTL / 2)
    assert (service.usable("i", digest(1)), service.usable("j", digest(2))) == (False, True)
    assert service.table.counts() == (2, 1, 1)


def test_another_key_is_somebody_else(world: Platforms, start: Start) -> None:
    """No verdict for the new key and none any more for the old; the old one's refusal is not the new one's."""
    service = start()
    see(service, world, i=1)
    service.seen("c", [("i", key(2))])
    assert not service.usable("i", digest(1))
    assert not service.usable("i", digest(2))
    assert not service.chute_usable("c")
    world.clock.advance(MIN_INTERVAL)
    assert not service.usable("i", digest(2))  # the evidence still speaks of key 1: refused
    see(service, world, i=3)
    world.clock.advance(MIN_INTERVAL)
    assert service.usable("i", digest(3))


def test_who_restarts_during_the_question_is_not_judged_by_it(world: Platforms, start: Start) -> None:
    """The answer may speak of either key, so it neither verifies nor refuses; the next one does."""
    service = start()
    world.hold = True
    see(service, world, i=1)
    service.seen("c", [("i", key(2))])
    world.held.pop().callback(None)
    assert [one[0] for one in world.told] == ["fetched"]
    world.hold, world.keys = False, {"i": 2}
    world.clock.advance(MIN_INTERVAL)
    assert service.usable("i", digest(2))


@pytest.mark.parametrize("text", ["", "AAAA", key(1)[:-1], key(1) + "\n", "é"])
def test_what_is_no_key_is_no_instance(world: Platforms, start: Start, text: str) -> None:
    """Wrong length or no strict base64: passed over."""
    service = start()
    service.seen("c", [("i", text)])
    world.clock.advance(1)
    assert (service.table.counts(), world.asked) == ((0, 0, 0), [])


def test_an_instance_nobody_names_is_forgotten(world: Platforms, start: Start) -> None:
    """A TTL after evidence last named it, and its verdict has expired; the chute is not asked about any more."""
    service = start()
    see(service, world, i=1)
    world.keys.clear()
    world.clock.pump([10.0] * 220)
    assert service.table.counts() == (0, 0, 0)
    asked = len(world.asked)
    world.clock.advance(LAST_RETRY)
    assert len(world.asked) == asked


def test_an_api_that_is_down_makes_nobody_forgotten(world: Platforms, start: Start) -> None:
    """Not for a day: so that verdicts come back by themselves when it does."""
    service = start()
    see(service, world, i=1)
    world.failure = DOWN
    world.clock.pump([100.0] * 30)
    assert service.table.counts() == (1, 0, 0)
    world.failure = None
    world.clock.advance(LAST_RETRY)
    assert service.usable("i", digest(1))
    world.failure = DOWN
    world.clock.pump([600.0] * 146)
    assert service.table.counts() == (0, 0, 0)


def test_what_is_remembered_is_bounded(world: Platforms, start: Start) -> None:
    """In chutes and in instances of each; the newest stay."""
    service = start()
    world.failure = DOWN
    service.seen("c", [(f"i{number}", key(1)) for number in range(MAX_INSTANCES + 5)])
    world.clock.advance(1)
    assert len(service.table.of("c")) == MAX_INSTANCES
    for number in range(MAX_CHUTES):
        see(service, world, f"d{number}", **{f"j{number}": 1})
    assert "c" not in service.table.chutes()
    assert len(service.table.chutes()) == MAX_CHUTES


def test_a_chute_that_does_not_answer_is_asked_ever_later(world: Platforms, start: Start) -> None:
    """Twice as long each time, to a limit, and discovery naming new instances does not hasten it."""
    service = start()
    world.failure = DOWN
    see(service, world, i=1)
    moments, asked = [], 1
    begun = world.clock.seconds()
    for second in range(1500):
        see(service, world, **{f"n{second // 100}": 1})
        if len(world.asked) > asked:
            asked = len(world.asked)
            moments.append(world.clock.seconds() - begun)
    gaps = [later - earlier for earlier, later in zip([0.0, *moments], moments, strict=False)]
    assert gaps == [FIRST_RETRY, 60.0, 120.0, 240.0, 480.0]


def test_new_instances_of_a_chute_wait_a_little(world: Platforms, start: Start) -> None:
    """A second question comes at the earliest MIN_INTERVAL after the answer to the first."""
    service = start()
    see(service, world, i=1)
    see(service, world, j=2)
    world.clock.advance(MIN_INTERVAL - 2)
    assert (len(world.asked), service.usable("j", digest(2))) == (1, False)
    world.clock.advance(1)
    assert (len(world.asked), service.usable("j", digest(2))) == (2, True)


def test_a_lost_instance_does_not_hold_up_the_others(world: Platforms, start: Start) -> None:
    """One that evidence does not list is asked for ever later, a new one of the same chute at once."""
    service = start()
    see(service, world, i=1, gone=2)
    del world.keys["gone"]
    for _ in range(5):
        world.clock.advance(200)
        service.seen("c", [("gone", key(2))])
    see(service, world, new=3)
    world.clock.advance(MIN_INTERVAL)
    assert service.usable("new", digest(3))


def test_only_a_few_answers_are_awaited_at_once(world: Platforms, start: Start) -> None:
    """The others come when one of them has ended."""
    service = start()
    world.hold = True
    for number in range(MAX_AT_ONCE + 2):
        see(service, world, f"c{number}", **{f"i{number}": number})
    assert len(world.held) == MAX_AT_ONCE
    world.held.pop(0).callback(None)
    world.clock.advance(1)
    assert len(world.asked) == MAX_AT_ONCE + 1


def test_an_error_nobody_foresaw_ends_one_question_only(world: Platforms, start: Start) -> None:
    """It is reported without its text, and the chute is asked again later."""
    service = start()
    world.failure = RuntimeError("secret")
    with capturedLogs() as logged:
        see(service, world, i=1)
    lines = [formatEvent(event) for event in logged]
    assert len(lines) == 1
    assert "RuntimeError while attestation" in lines[0]
    assert "secret" not in lines[0]
    world.failure = None
    world.clock.advance(FIRST_RETRY)
    assert service.usable("i", digest(1))


async def test_stopping_ends_what_is_under_way(world: Platforms, start: Start) -> None:
    """Questions are cancelled, no timer is left, and a later start goes on."""
    service = start()
    world.hold = True
    see(service, world, i=1)
    await service.stopService()  # type: ignore[misc]
    assert world.clock.getDelayedCalls() == []
    assert not service.usable("i", digest(1))
    world.hold = False
    service.startService()
    world.clock.advance(FIRST_RETRY)
    assert service.usable("i", digest(1))


def test_a_verdict_says_what_was_checked(world: Platforms, start: Start) -> None:
    """Level, time, evidence and whose list: what receipts and reports may claim, and no more."""
    binding, quote, tcb = start("binding"), start("quote"), start("quote+tcb")
    for service in (binding, quote, tcb):
        see(service, world, i=1)
    verdicts = [service.verdict("i", digest(1)) for service in (binding, quote, tcb)]
    said = [(one.level, one.measurement, one.measurements, one.tcb_status) for one in verdicts if one]
    assert said == [
        ("binding", None, None, None),
        ("quote", "tdx 2.0", "api", None),
        ("quote+tcb", "tdx 2.0", "api", "UpToDate"),
    ]
    assert verdicts[0] is not None
    assert (verdicts[0].expires, verdicts[0].checked_at) == (NOW + 1 + TTL, NOW + 1)
    assert len(bytes.fromhex(verdicts[0].evidence_sha256)) == 32
    assert binding.verdict("i", digest(2)) is None


FORGED = {"signature": bytes(64)}


@pytest.mark.parametrize(
    ("level", "changes", "usable"),
    [
        ("binding", FORGED, True),
        ("quote", FORGED, False),
        ("quote", {"rtmrs": (bytes(48),) * 3 + (b"\1" * 48,)}, False),
        ("binding", {"td_attributes": b"\1" + bytes(7)}, False),
        ("quote", {}, True),
        ("quote+tcb", FORGED, False),
    ],
    ids=["binding believes anybody", "forged", "unknown image", "debug", "quote", "forged, tcb"],
)
def test_each_level_refuses_what_it_looks_at(
    world: Platforms, start: Start, level: str, changes: dict[str, Any], usable: bool
) -> None:
    """And only that: a forged signature passes the level that looks at none."""
    service = start(level)
    world.quote_changes = changes
    see(service, world, i=1)
    assert service.usable("i", digest(1)) is usable


def test_a_platform_that_is_out_of_date_is_refused(world: Platforms, start: Start) -> None:
    """A verdict of before goes at once."""
    service = start("quote+tcb")
    see(service, world, i=1)
    assert service.usable("i", digest(1))
    world.tcb_status = "OutOfDate"
    world.clock.advance(TTL / 2)
    assert not service.usable("i", digest(1))
    assert world.told[-1] == ("changed", "c", "i", "refused", "tcb_status")


@pytest.mark.parametrize("collateral", [DOWN, Collateral("text", FMSPC, NOW - DAY, NOW)])
def test_without_collateral_nothing_is_decided(world: Platforms, start: Start, collateral: Any) -> None:
    """Missing or expired: no verdict, no refusal, and one of before is left alone."""
    service = start("quote+tcb")
    good, world.platform_collateral = world.platform_collateral, collateral
    see(service, world, i=1)
    assert not service.usable("i", digest(1))
    assert world.told == [("fetched", "ok"), ("checked", "undecided")]
    world.platform_collateral = good
    world.clock.advance(FIRST_RETRY)
    assert service.usable("i", digest(1))
    world.platform_collateral = collateral
    world.clock.advance(TTL / 2)
    assert world.told[-1] == ("checked", "undecided")
    assert service.usable("i", digest(1))


def test_a_pinned_list_is_the_only_one(world: Platforms, start: Start) -> None:
    """The API's is not even asked for, whether the operator's matches or not."""
    service = start("quote", pinned=read_measurements(MEASURED, "pinned"))
    see(service, world, i=1)
    verdict = service.verdict("i", digest(1))
    assert verdict is not None
    assert verdict.measurements == "pinned"
    other = start("quote", pinned=read_measurements(NOT_MEASURED, "pinned"))
    see(other, world, i=1)
    assert not other.usable("i", digest(1))
    assert world.lists_asked == 0


def test_an_image_newer_than_the_list_is_looked_up_again(world: Platforms, start: Start) -> None:
    """Before it is refused for good the API's list is fetched once more; then its word counts."""
    service = start("quote")
    world.list = NOT_MEASURED
    see(service, world, old=1)
    assert ("changed", "c", "old", "refused", "measurements") in world.told
    world.list = MEASURED
    world.clock.advance(MIN_INTERVAL)
    see(service, world, i=2, j=3)
    assert service.usable("i", digest(2))
    assert world.lists_asked == 2


def test_the_apis_list_is_renewed_and_kept(world: Platforms, start: Start) -> None:
    """After its age it is fetched again; where that fails the last one stays in force."""
    service = start("quote")
    see(service, world, i=1)
    world.list = b"<html>"
    for _ in range(5):
        world.clock.advance(TTL / 2)
    assert world.clock.seconds() - NOW > MEASUREMENTS_AGE
    assert world.lists_asked == 3
    assert service.usable("i", digest(1))


@pytest.mark.parametrize("broken", [DOWN, b"[]"])
def test_without_any_list_nothing_is_decided(world: Platforms, start: Start, broken: Any) -> None:
    """Undecided for all instances, and the API is not asked for the list once for each."""
    service = start("quote")
    world.list = broken
    see(service, world, i=1, j=2, k=3)
    assert world.told == [("fetched", "ok"), *[("checked", "undecided")] * 3]
    assert world.lists_asked == 1
    world.list = MEASURED
    world.clock.advance(max(MEASUREMENTS_RETRY, FIRST_RETRY))
    assert service.usable("k", digest(3))


def test_rules_that_make_no_sense_are_refused(world: Platforms) -> None:
    """A level that needs collateral has it, and no other does; ``off`` needs no verifier."""
    checker = TcbChecker(world, frozenset())
    for level, tcb in (("off", None), ("quote+tcb", None), ("quote", checker)):
        with pytest.raises(ValueError, match=r"quote\+tcb"):
            AttestationRules(level, TTL, tcb=tcb)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="collateral"):
        EvidenceJudge(AttestationRules("quote", TTL), world, world, world.clock.seconds, world.clock.seconds, execute)


def test_a_chute_without_verdicts_is_unusable_while_time_passes() -> None:
    """However much the clock moves on between two looks at it within one question."""
    ticks = count()
    table = VerdictTable(lambda: float(next(ticks)))
    assert not table.chute_usable("c")
