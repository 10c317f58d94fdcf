"""Which models the sealed transport chooses from and looks at, where their instances have to be attested."""

import json
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from attrs import define, field

from chutes_autopilot.control.snapshots import Snapshot, SnapshotHolder
from chutes_autopilot.policy.catalog import parse_catalog
from chutes_autopilot.policy.failover import Refused
from chutes_autopilot.policy.feed_json import finish
from chutes_autopilot.policy.model_offers import offers_in_slices
from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.sealed_composition import SealedTransport, VerifiedSnapshots

OPEN, SILENT = {"confidential_compute": False}, dict[str, bool]()
TEE = {"confidential_compute": True}
RANKED = {"o/Open": OPEN, "t/One": TEE, "s/Silent": SILENT, "t/Two": TEE, "t/Three": TEE}
"""The models, best first, and what the catalog says of them."""


def snapshot_of(models: dict[str, dict[str, bool]]) -> Snapshot:
    records = [{"id": name, "chute_id": chute_of(name), **more} for name, more in models.items()]
    catalog = parse_catalog(json.dumps({"data": records}).encode())
    ranking = tuple(cast(Ranked, SimpleNamespace(model=name)) for name in models)
    return Snapshot(1, catalog, ranking=ranking, offers=finish(offers_in_slices(catalog)))


def chute_of(model: str) -> str:
    return f"chute-{model.partition('/')[2].partition(':')[0].lower()}"


@define(eq=False)
class Platform:
    """A sealed transport over a transport and a verifier that only note what they are asked and told."""

    models: dict[str, dict[str, bool]]
    verified: frozenset[str] = frozenset()
    looked_at: tuple[str, ...] = ()
    prefetched: list[list[str]] = field(factory=list)
    opened: list[str] = field(factory=list)
    obstacles: dict[str, str] = field(factory=dict)
    told: list[Refused] = field(factory=list)

    def sealed(self, *, attested: bool = True) -> SealedTransport:
        holder = SnapshotHolder(snapshot_of(self.models))
        verifier: Any = SimpleNamespace(
            chute_usable=lambda chute: chute in {chute_of(model) for model in self.verified},
            table=SimpleNamespace(
                counts=lambda: (len(self.looked_at), len(self.verified), 0),
                chutes=lambda: tuple(chute_of(model) for model in self.looked_at),
            ),
        )
        snapshots = VerifiedSnapshots(holder, lambda _: self.verified) if attested else holder
        return SealedTransport(cast(Any, self), verifier if attested else None, snapshots, holder, chute_of)

    def prefetch(self, models: Iterable[str], most: int = 1) -> None:
        self.prefetched.append(list(models)[:most])

    def open(self, model: str, *_: object) -> Any:
        self.opened.append(model)

    def obstacle(self, model: str) -> str | None:
        return self.obstacles.get(model)

    def failed(self, why: Refused) -> None:
        self.told.append(why)

    def ask(self, sealed: SealedTransport, model: str) -> None:
        attempt = sealed.open(model, cast(Any, None), 1.0, cast(Any, self))
        if attempt is not None:
            attempt.start()


@pytest.mark.parametrize(
    ("models", "verified", "candidates"),
    [
        (RANKED, {"t/Two", "t/Three"}, ("t/Two", "t/Three")),
        (RANKED, set(), ("t/One", "s/Silent", "t/Two", "t/Three")),
        ({"o/Open": OPEN}, set(), ("o/Open",)),
    ],
)
def test_what_may_be_chosen_from(
    models: dict[str, dict[str, bool]], verified: set[str], candidates: tuple[str, ...]
) -> None:
    """Verified models; before there are any, those that may become so; else whatever there is, to be refused."""
    assert Platform(models, frozenset(verified)).sealed().snapshots.current.ranked_models == candidates


@pytest.mark.parametrize("model", ["t/One", "s/Silent", "t/One:THINKING"])
def test_a_refused_model_that_may_have_evidence_is_looked_at(model: str) -> None:
    """The client is told that there is no verdict, and to come again."""
    platform = Platform(RANKED)
    platform.ask(platform.sealed(), model)
    assert [(why.error.code, why.retry, why.reason) for why in platform.told] == [
        ("no_attested_candidate", True, "no_verdict")
    ]
    assert (platform.prefetched, platform.opened) == ([[model]], [])


@pytest.mark.parametrize("model", ["o/Open", "o/Open:THINKING"])
def test_no_look_up_is_spent_on_what_cannot_have_evidence(model: str) -> None:
    """Not by being asked for, which is refused for want of a verdict, and not in the background."""
    platform = Platform({"o/Open": OPEN})
    sealed = platform.sealed()
    platform.ask(sealed, model)
    sealed.keep_ready()
    assert [why.reason for why in platform.told] == ["no_verdict"]
    assert (platform.opened, [models for models in platform.prefetched if models]) == ([], [])


def looked_up(platform: Platform, *, asked: str | None = None, attested: bool = True) -> Iterator[str]:
    sealed = platform.sealed(attested=attested)
    if asked is not None:
        platform.ask(sealed, asked)
    sealed.keep_ready()
    return (model for models in platform.prefetched for model in models)


def test_until_something_is_verified_what_was_not_looked_at_comes_first() -> None:
    """Before any request, in the order of the ranking."""
    assert list(looked_up(Platform(RANKED))) == ["t/One", "s/Silent", "t/Two"]
    assert list(looked_up(Platform(RANKED, looked_at=("t/One", "t/Two")))) == ["s/Silent", "t/Three", "t/One"]


def test_beside_verified_models_the_likeliest_others_are_looked_at_once() -> None:
    """While the route is in use; what was looked at in vain is left to the verifier."""
    platform = Platform(RANKED, frozenset({"t/Three"}), ("t/Three", "t/One"))
    assert not list(looked_up(platform))
    assert list(looked_up(platform, asked="t/Three")) == ["t/Three", "s/Silent", "t/Two"]
    assert platform.opened == ["t/Three"]


def test_without_attestation_the_likeliest_are_kept_ready_whatever_they_run_on() -> None:
    """While the route is in use."""
    assert not list(looked_up(Platform(RANKED), attested=False))
    assert list(looked_up(Platform(RANKED), asked="t/Two", attested=False)) == ["o/Open", "t/One", "s/Silent"]


def test_what_would_be_refused_is_told_before_it_is_tried() -> None:
    """For want of a verdict, or by the transport."""
    platform = Platform(RANKED, frozenset({"t/One", "t/Two"}), obstacles={"t/One": "no_instances"})
    sealed = platform.sealed()
    obstacles = [sealed.obstacle(model) for model in ("t/One", "t/Two:THINKING", "t/Three:THINKING")]
    assert obstacles == ["no_instances", None, "no_verdict"]
    assert platform.sealed(attested=False).obstacle("t/Three") is None


def test_a_model_that_was_named_and_passed_over_is_looked_at() -> None:
    """As one that was refused, if it may have evidence and that is what it lacks."""
    platform = Platform(RANKED, frozenset({"t/One"}), ("t/One",))
    sealed = platform.sealed()
    sealed.passed_over({"o/Open": "no_verdict", "t/Two": "no_verdict", "s/Silent": "no_instances"})
    assert platform.prefetched == [["t/Two"]]
