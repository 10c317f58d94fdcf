"""Every step from what a request asks for to what is tried for it."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.choice import Choice, Chooser, Client, by_base
from chutes_autopilot.policy.cooldown import CooldownRules
from chutes_autopilot.policy.health import FleetHealth
from chutes_autopilot.policy.model_field import Direct, read_model_field
from chutes_autopilot.policy.model_offers import Offer, Offers
from chutes_autopilot.policy.ranking import Ranked, rank
from chutes_autopilot.policy.request_needs import Need
from chutes_autopilot.policy.utilization import parse_utilization

ALIAS = "chutesai/AutoPilot"
IMAGE = Need(("image",))
NEW = Client()
ANYTHING = Need()
OFFERS = Offers(
    MappingProxyType(
        {
            "text": Offer(lacks=frozenset({"image"}), context=1000),
            "short": Offer(has=frozenset({"image"}), context=100),
            "long": Offer(has=frozenset({"image"}), context=10_000, confidential=True),
            "blank": Offer(),
        }
    )
)


@frozen
class World:
    """What is known of a platform with four models."""

    ranking: tuple[Ranked, ...] = ()
    ranked_models: tuple[str, ...] = ("text", "short", "long")
    offers: Offers = OFFERS


def chosen(
    model: str,
    need: Need = ANYTHING,
    sticky: str | None = None,
    limit: int = 8,
    *,
    failed: str = "",
    gave_way: bool = False,
    require_tee: bool = False,
    health: FleetHealth | None = None,
) -> Choice:
    """What is chosen at second 100, after each of the ``failed`` models has just begun to cool down."""
    health = health or FleetHealth(CooldownRules(failures=1))
    for name in failed.split():
        health.failed(name, 99.0)
    known = frozenset(OFFERS.by_model)
    asked = read_model_field(model, known, max_items=8, unknown="refuse")
    return Chooser(World(), health, limit, require_tee).choose(asked, need, Client(sticky, gave_way), 100.0)


@pytest.mark.parametrize(
    ("model", "need", "sticky", "candidates", "skipped"),
    [
        (ALIAS, ANYTHING, None, "text short long", {}),
        (ALIAS, IMAGE, None, "short long", {}),
        (ALIAS, IMAGE, "text", "short long", {}),
        (ALIAS, IMAGE, "long", "long short", {}),
        (ALIAS, Need(text_bytes=2000), None, "text long", {}),
        (ALIAS + ":THINKING", IMAGE, None, "short:THINKING long:THINKING", {}),
        ("long,text,short", IMAGE, None, "long short", {"text": "image"}),
        ("text:latency,blank", IMAGE, "text", "blank", {"text:latency": "image"}),
        ("short,text", Need(text_bytes=1100), None, "short text", {}),
        ("short,text", Need(text_bytes=2400), None, "text", {"short": "context"}),
        (f"text,{ALIAS}", IMAGE, None, "short long", {"text": "image"}),
        ("text", IMAGE, None, "text", {}),
    ],
)
def test_what_cannot_serve_the_request_is_left_out(
    model: str, need: Need, sticky: str | None, candidates: str, skipped: dict[str, str]
) -> None:
    """The alias goes by estimates, a list loses only impossible items and names them, one model is never judged."""
    choice = chosen(model, need, sticky)
    assert (choice.plan.candidates, dict(choice.skipped)) == (tuple(candidates.split()), skipped)


def test_the_attempts_allowed_are_counted_without_the_incapable() -> None:
    """A model that cannot serve a request does not use up one of its attempts."""
    assert chosen(ALIAS, IMAGE, limit=2).plan.candidates == ("short", "long")


def test_where_an_estimate_speaks_against_all_the_longest_come_first() -> None:
    """A guess refuses nobody."""
    assert chosen(ALIAS, Need(text_bytes=50_000)).plan.candidates == ("long",)
    with pytest.raises(ApiError, match="no_capable_candidate"):
        chosen(ALIAS, Need(text_bytes=500_000))


@pytest.mark.parametrize("model", [ALIAS, "text,short"])
def test_nothing_capable_is_the_requests_fault(model: str) -> None:
    """The answer names what none of the models has, and the member of the body that asks for it."""
    with pytest.raises(ApiError, match="no_capable_candidate") as caught:
        chosen(model, Need(("image",), text_bytes=10**7))
    assert caught.value.status == 400
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("model", "candidates"),
    [
        (f"{ALIAS}:vision", "short long"),
        (f"{ALIAS}:tee:vision", "long"),
        (f"{ALIAS}:tee:THINKING", "long:THINKING"),
        (f"{ALIAS}:tee,text", "long text"),
        (f"text,{ALIAS}:vision", "text short long"),
    ],
)
def test_an_alias_with_parts_stands_for_the_models_that_keep_them(model: str, candidates: str) -> None:
    """In the order of the ranking, alone and within a list."""
    assert chosen(model).plan.candidates == tuple(candidates.split())


def test_the_models_left_out_are_told_with_the_part_they_lack() -> None:
    """They are neither candidates nor counted against the attempts."""
    choice = chosen(f"{ALIAS}:tee:vision", sticky="short", limit=1)
    assert (dict(choice.unwanted), choice.plan.candidates) == ({"text": "tee", "short": "tee"}, ("long",))


def test_parts_that_no_live_model_keeps_are_the_requests_fault() -> None:
    """400 names the part; models of the client's own list remain."""
    with pytest.raises(ApiError, match="no_capable_candidate") as caught:
        chosen(f"{ALIAS}:tools")
    assert "tools" in caught.value.message
    assert caught.value.param == "model"
    assert chosen(f"{ALIAS}:tools,text").plan.candidates == ("text",)


def test_an_operator_may_require_confidential_models() -> None:
    """For every alias, never for a model asked for by name."""
    assert chosen(ALIAS, require_tee=True).plan.candidates == ("long",)
    assert chosen(f"text,{ALIAS}", require_tee=True).plan.candidates == ("text", "long")
    health, offers = FleetHealth(), Offers()
    for alias in (ALIAS, f"{ALIAS}:fast"):
        asked = read_model_field(alias, frozenset(), max_items=8, unknown="refuse")
        with pytest.raises(ApiError, match="no_candidates"):
            Chooser(World(offers=offers), health, 8, require_tee=True).choose(asked, ANYTHING, Client(), 100.0)


@pytest.mark.parametrize(
    ("model", "failed", "candidates", "skipped"),
    [
        (ALIAS, "text", "short long text", {}),
        (ALIAS, "text short long", "text short long", {}),
        ("short,text", "short", "text short", {"short": "cooling"}),
        (f"short,{ALIAS}", "short text", "long short text", {"short": "cooling"}),
        ("short,text", "short text", "short text", {}),
        ("text", "text", "text", {}),
    ],
)
def test_a_cooling_model_comes_behind_all_others(
    model: str, failed: str, candidates: str, skipped: dict[str, str]
) -> None:
    """It is the last resort, and keeps its place in the preferred order; an item of a list is named."""
    choice = chosen(model, failed=failed)
    assert (choice.plan.candidates, dict(choice.skipped)) == (tuple(candidates.split()), skipped)
    assert choice.plan.preferred == chosen(model).plan.preferred


@given(
    models=st.permutations(list(OFFERS.by_model)),
    need=st.builds(Need, st.sampled_from([(), ("image",)]), text_bytes=st.integers(0, 200_000)),
    failed=st.lists(st.sampled_from(list(OFFERS.by_model)), unique=True),
)
def test_a_list_keeps_its_order_but_for_what_is_named(models: list[str], need: Need, failed: list[str]) -> None:
    """Whatever is asked for and whoever cools down; what does comes last, in the same order, and none is lost."""
    choice = chosen(",".join(models), need, failed=" ".join(failed))
    first = [model for model in models if model not in choice.skipped]
    last = [model for model in models if choice.skipped.get(model) == "cooling"]
    assert choice.plan.candidates == (*first, *last)
    assert choice.plan.last_resort == frozenset(last)
    assert first


def test_a_remembered_choice_is_kept_while_the_preferred_model_cools_down() -> None:
    """Failing back to it would only lead to a third model."""
    assert chosen(ALIAS, sticky="long", gave_way=True).plan.candidates[0] == "text"
    assert chosen(ALIAS, sticky="long", gave_way=True, failed="text").plan.candidates == ("long", "short", "text")
    assert chosen(ALIAS, sticky="text", failed="text").plan.candidates == ("short", "long", "text")


@pytest.mark.parametrize(
    ("model", "candidates"),
    [
        (f"{ALIAS}:fast", "long short text"),
        (f"{ALIAS}:throughput", "short long text"),
        ("text,short,long:latency", "long short text"),
        ("text,short,long:THROUGHPUT", "short long text"),
        ("text,short,long:latency:THINKING", "long:THINKING short:THINKING text:THINKING"),
        (f"text,{ALIAS}:vision:fast:THINKING,blank", "text long:THINKING short:THINKING blank"),
    ],
)
def test_own_measurements_order_what_asks_for_them(model: str, candidates: str) -> None:
    """The best measured first, then the unmeasured; the wish goes before a remembered choice, and is made anew."""
    health = FleetHealth()
    for name, first_token, pace in (("long", 0.1, 2.0), ("short", 0.5, 1.0)):
        health.succeeded(name, first_token, 99.0)
        health.streamed(name, 10, 10, pace, 99.0)
    choice = chosen(model, health=health, sticky=None if "," in model else "text")
    assert (choice.plan.candidates, choice.lasting) == (tuple(candidates.split()), False)
    fast = "throughput" not in model.lower()
    assert choice.order == ("fast" if fast else "throughput")
    assert choice.measured == pytest.approx({"long": 0.1, "short": 0.5} if fast else {"long": 4.5, "short": 9.0})


def test_what_is_no_candidate_is_not_told_of() -> None:
    """Of a list its own items, those behind the last attempt too; of the alias all that can serve the request."""
    assert chosen("short,text,long", limit=2).considered == ("short", "text", "long")
    assert chosen(ALIAS, IMAGE, limit=1).considered == ("short", "long")
    assert chosen("text").considered == ()


def test_many_unwanted_models_cost_no_more_than_a_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried is gone through as often, whether an alias leaves out one model or a hundred."""
    looks: list[int] = []

    def counted(entries: Sequence[Direct]) -> dict[str, Direct]:
        looks.append(len(entries))
        return by_base(entries)

    monkeypatch.setattr("chutes_autopilot.policy.choice.by_base", counted)
    asked = read_model_field(f"{ALIAS}:tee", frozenset(), max_items=8, unknown="refuse")
    counts = []
    for unwanted in (1, 100):
        world = World(ranked_models=("long", *(f"m{number}" for number in range(unwanted))))
        choice = Chooser(world, FleetHealth(), 8).choose(asked, ANYTHING, NEW, 100.0)
        assert len(choice.unwanted) == unwanted
        counts.append(len(looks))
        looks.clear()
    assert counts[0] == counts[1]


def test_a_client_may_have_an_order_of_its_own() -> None:
    """It is the same for all its requests, differs between clients, and is narrowed like the ranking."""
    rows = [{"name": f"m{i}-TEE", "active_instance_count": 10} for i in range(6)]
    ranking = tuple(rank(parse_utilization(json.dumps(rows).encode()).rows, None))
    names = tuple(ranked.model for ranked in ranking)
    health = FleetHealth(CooldownRules(failures=1))
    health.failed("m3-TEE", 99.0)
    chooser = Chooser(World(ranking, names, Offers()), health, 8)
    asked = read_model_field(ALIAS, frozenset(), max_items=8, unknown="refuse")

    def order(key: bytes) -> tuple[str, ...]:
        choice = chooser.choose(asked, ANYTHING, Client(spread_by=key), 100.0)
        assert not choice.lasting
        return choice.plan.candidates

    orders = {order(bytes([key]) * 32) for key in range(20)}
    assert len(orders) > 5
    assert {(frozenset(each), each[-1]) for each in orders} == {(frozenset(names), "m3-TEE")}
    assert order(b"k" * 32) == order(b"k" * 32)


@frozen
class Door:
    """Which models can be asked: all but those that have an obstacle, and some of them without waiting."""

    obstacles: Mapping[str, str] = MappingProxyType({})
    ready: str = ""
    looked_at: list[str] = field(factory=list)

    def obstacle(self, model: str) -> str | None:
        self.looked_at.append(model)
        return self.obstacles.get(model)

    def at_hand(self, model: str) -> bool:
        return model in self.ready.split()

    def passed_over(self, models: Mapping[str, str]) -> None:
        """Not told by the choice itself."""


def chosen_past(door: Door, model: str, client: Client = NEW, *, limit: int = 8, failed: str = "") -> Choice:
    """What is chosen at second 100 where not every model can be asked."""
    health = FleetHealth(CooldownRules(failures=1))
    for name in failed.split():
        health.failed(name, 99.0)
    asked = read_model_field(model, frozenset(OFFERS.by_model), max_items=8, unknown="refuse")
    return Chooser(World(), health, limit, reach=door).choose(asked, ANYTHING, client, 100.0)


@pytest.mark.parametrize(
    ("model", "obstacles", "candidates", "skipped"),
    [
        (ALIAS, {"text": "no_instances"}, "short", {}),
        ("text,long", {"text": "no_verdict"}, "long", {"text": "no_verdict"}),
        (f"text,{ALIAS}", {"text": "no_verdict"}, "short", {"text": "no_verdict"}),
        ("text:THINKING,long", {"text:THINKING": "chute_gone"}, "long", {"text:THINKING": "chute_gone"}),
        ("text,long", {"text": "no_verdict", "long": "no_instances"}, "text", {}),
        ("text", {"text": "no_verdict"}, "text", {}),
    ],
)
def test_what_cannot_be_asked_uses_up_no_attempt(
    model: str, obstacles: dict[str, str], candidates: str, skipped: dict[str, str]
) -> None:
    """It is left out, and named where the client did; but not where nothing else is left, which tells why."""
    choice = chosen_past(Door(obstacles), model, limit=1)
    assert (choice.plan.candidates, dict(choice.skipped)) == (tuple(candidates.split()), skipped)
    assert choice.lasting is (model == "text")


def test_a_list_goes_back_to_what_could_not_be_asked() -> None:
    """The preferred model of a list stays its own; an alias stands for what can be asked."""
    door = Door({"text": "no_instances"})
    assert chosen_past(door, "text:THINKING,long").plan.preferred == ("text:THINKING", "long")
    choice = chosen_past(door, "text,short,long", Client("long", gave_way=True))
    assert (choice.plan.candidates, choice.plan.base(choice.plan.preferred[0])) == (("long", "short"), "text")
    alias = chosen_past(door, ALIAS, Client("long", gave_way=True)).plan
    assert (alias.candidates, alias.preferred) == (("short", "long"), ("short", "long"))


def test_no_more_is_looked_at_than_may_be_tried() -> None:
    """But for what cools down, behind which the next one comes, and the client's own choice."""
    door = Door()
    chosen_past(door, ALIAS, limit=1)
    chosen_past(door, ALIAS, limit=1, failed="text")
    chosen_past(door, ALIAS, Client("long"), limit=1)
    assert door.looked_at == ["text", "text", "short", "text", "long"]
    assert chosen_past(Door({"long": "no_instances"}), ALIAS, Client("long"), limit=1).plan.candidates == ("text",)


def test_of_models_with_the_same_score_what_is_at_hand_comes_first() -> None:
    """And never before one with a better score."""
    counts = {"a-TEE": 9, "b-TEE": 5, "c-TEE": 5, "d-TEE": 5}
    rows = [{"name": name, "active_instance_count": count} for name, count in counts.items()]
    ranking = tuple(rank(parse_utilization(json.dumps(rows).encode()).rows, None))
    names = tuple(ranked.model for ranked in ranking)
    chooser = Chooser(World(ranking, names, Offers()), FleetHealth(), 8, reach=Door(ready="d-TEE c-TEE"))
    asked = read_model_field(ALIAS, frozenset(), max_items=8, unknown="refuse")
    assert chooser.choose(asked, ANYTHING, Client(), 100.0).plan.candidates == ("a-TEE", "c-TEE", "d-TEE", "b-TEE")
