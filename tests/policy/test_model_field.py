"""What ``model`` may be and what it asks for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.aliases import Wanted
from chutes_autopilot.policy.model_field import (
    Alias,
    Direct,
    ModelField,
    PreferenceList,
    base_of,
    check_model_value,
    read_model_field,
)

CATALOG = frozenset({"org/a", "org/b", "org/c", "odd,name", "odd:latency", "odd:THINKING"})
ALIAS = "chutesai/AutoPilot"
OTHER_ALIAS = "chutesai-routing/AutoPilot"


def read(model: str, known: frozenset[str] = CATALOG, max_items: int = 4) -> ModelField:
    return read_model_field(model, known, max_items=max_items, unknown="refuse")


def plain(*names: str) -> PreferenceList:
    return PreferenceList(tuple(Direct(name, name) for name in names))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_model"),
        (7, "invalid_model"),
        (True, "invalid_model"),
        (["org/a"], "invalid_model"),
        ("", "invalid_model"),
        (" \u00a0 ", "invalid_model"),
        ("org/a\n", "invalid_model"),
        ("org/a\x00", "invalid_model"),
        ("org/a\x7f", "invalid_model"),
        ("org/a\x85", "invalid_model"),
        ("org/a\ud800", "invalid_model"),
        ("x" * 1025, "invalid_model"),
    ],
)
def test_a_value_that_cannot_name_a_model_is_refused(value: object, code: str) -> None:
    """Absent, of another type, blank, unprintable and overlong values each end in their code, with the parameter."""
    with pytest.raises(ApiError) as caught:
        check_model_value(value)
    assert (caught.value.code, caught.value.param) == (code, "model")


@pytest.mark.parametrize("value", ["org/a", " org/a ", "modèle/é-模型", "x" * 1024])
def test_any_other_string_is_returned_as_it_came(value: str) -> None:
    """White space around it, other scripts and the full length are no fault of the value."""
    assert check_model_value(value) == value


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("org/a", Direct("org/a", "org/a")),
        ("odd,name", Direct("odd,name", "odd,name")),
        ("odd:latency", Direct("odd:latency", "odd:latency")),
        ("odd,name:THINKING", Direct("odd,name:THINKING", "odd,name")),
        ("org/a:latency", Direct("org/a:latency", "org/a")),
        ("org/a:ThroughPut", Direct("org/a:ThroughPut", "org/a")),
        ("org/a:THINKING", Direct("org/a:THINKING", "org/a")),
        ("org/a:latency:THINKING", Direct("org/a:latency:THINKING", "org/a")),
        ("odd:latency:THINKING", Direct("odd:latency:THINKING", "odd:latency")),
        ("default", Direct("default", "default")),
        ("default:latency", Direct("default:latency", "default")),
        ("default:throughput:THINKING", Direct("default:throughput:THINKING", "default")),
        (ALIAS, Alias()),
        (OTHER_ALIAS, Alias()),
        (f"{ALIAS}:THINKING", Alias(":THINKING")),
    ],
)
def test_one_name_is_direct_or_the_alias(model: str, field: ModelField) -> None:
    """Catalog names win whole; the platform's suffixes are understood on known names, ``default`` and the aliases."""
    assert read(model) == field


def test_a_catalog_name_wins_over_the_alias() -> None:
    """A model that is really called like the alias can be asked for."""
    known = frozenset({ALIAS})
    assert read(ALIAS, known) == Direct(ALIAS, ALIAS)
    assert read(f"{ALIAS},{OTHER_ALIAS}", known) == PreferenceList((Direct(ALIAS, ALIAS), Alias()))


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("org/b,org/a", plain("org/b", "org/a")),
        (" org/b ,, org/a\t,", plain("org/b", "org/a")),
        ("org/b,org/a,org/b", plain("org/b", "org/a")),
        ("org/a,", plain("org/a")),
        ("org/a,org/a", plain("org/a")),
        ("default,org/a", plain("default", "org/a")),
        ("org/a:latency,org/b", PreferenceList((Direct("org/a:latency", "org/a"), Direct("org/b", "org/b")))),
        ("org/a,odd:latency", plain("org/a", "odd:latency")),
        ("org/a,odd:THINKING", plain("org/a", "odd:THINKING")),
        (f"org/a,{ALIAS}", PreferenceList((Direct("org/a", "org/a"), Alias()))),
        (f"{ALIAS},{OTHER_ALIAS},", PreferenceList((Alias(),))),
    ],
)
def test_a_comma_makes_a_list(model: str, field: ModelField) -> None:
    """Items are trimmed, empties and repetitions dropped, the order kept; one left over still is a list."""
    assert read(model) == field


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("org/a,org/b:THINKING", ("org/a:THINKING", "org/b:THINKING")),
        ("org/a,org/b :THINKING ", ("org/a:THINKING", "org/b:THINKING")),
        ("org/a:THINKING,org/b:THINKING", ("org/a:THINKING", "org/b:THINKING")),
        ("org/a:THINKING,org/a:THINKING", ("org/a:THINKING",)),
        (
            "org/a:latency,odd:THINKING,org/b:THINKING",
            ("org/a:latency:THINKING", "odd:THINKING:THINKING", "org/b:THINKING"),
        ),
        ("org/a,odd:latency:THINKING", ("org/a:THINKING", "odd:latency:THINKING")),
        ("org/a:THINKING,org/b", ("org/a:THINKING", "org/b")),
    ],
)
def test_thinking_at_the_very_end_goes_to_every_item(model: str, sent: tuple[str, ...]) -> None:
    """A list-wide :THINKING is added once to each item; inside the list it is the item's own."""
    field = read(model)
    assert isinstance(field, PreferenceList)
    assert tuple(item.model for item in field.items if isinstance(item, Direct)) == sent


def test_thinking_for_the_list_reaches_its_alias() -> None:
    """The ranked list inside a list is tried with the list's suffix as well."""
    assert read(f"{ALIAS},org/a:THINKING") == PreferenceList((Alias(":THINKING"), Direct("org/a:THINKING", "org/a")))


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        (",", "0 different models"),
        (" , ,", "0 different models"),
        (", :THINKING", "0 different models"),
        ("org/a,org/b,org/c,default,odd,", "5 different models; between 1 and 4"),
    ],
)
def test_a_list_that_cannot_be_tried_is_refused(model: str, fragment: str) -> None:
    """No item and too many items are invalid_model_list, and say what to do."""
    with pytest.raises(ApiError, match="invalid_model_list") as caught:
        read(model)
    assert fragment in caught.value.message
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("model", "names", "order"),
    [
        ("org/a,org/b:latency", "org/a org/b", "fast"),
        ("org/a,org/b:ThroughPut", "org/a org/b", "throughput"),
        ("org/a,org/b:latency:THINKING", "org/a:THINKING org/b:THINKING", "fast"),
        ("org/a,:latency ", "org/a", "fast"),
        ("org/a:latency,org/b", "org/a:latency org/b", ""),
    ],
)
def test_an_order_at_the_end_of_a_list_is_the_lists(model: str, names: str, order: str) -> None:
    """It is no part of the last name, which the upstream would take for an order of its own."""
    field = read(model)
    assert isinstance(field, PreferenceList)
    assert (field.order, [item.model for item in field.items if isinstance(item, Direct)]) == (order, names.split())


@pytest.mark.parametrize(
    ("model", "alias"),
    [
        (f"{ALIAS}:tee", Alias("", Wanted(tee=True))),
        (f"{OTHER_ALIAS}:latency:THINKING", Alias(":THINKING", Wanted(order="fast"))),
    ],
)
def test_an_alias_may_say_what_is_wanted(model: str, alias: Alias) -> None:
    """Alone and as an item of a list."""
    assert read(model) == alias
    assert read(f"{model},org/a") == PreferenceList((alias, Direct("org/a", "org/a")))


def test_only_what_is_left_after_deduplication_counts() -> None:
    """Repetitions and empties do not use up the allowed length, and the alias is one item."""
    assert read(f"org/a,org/a,,org/b,{ALIAS},{OTHER_ALIAS},org/c", max_items=4) == PreferenceList(
        (Direct("org/a", "org/a"), Direct("org/b", "org/b"), Alias(), Direct("org/c", "org/c"))
    )


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("Org/A", ["Org/A"]),
        (" org/a", [" org/a"]),
        ("org/a,\u00a0org/b", ["\u00a0org/b"]),
        ("org/a,nope/x,org/b,nope/y:latency,default", ["nope/x", "nope/y:latency"]),
        ("org/a:thinking", ["org/a:thinking"]),
        ("org/a:THINKING:latency", ["org/a:THINKING:latency"]),
        ("chutesai/autopilot", ["chutesai/autopilot"]),
        ("Default", ["Default"]),
    ],
)
def test_names_outside_the_catalog_are_refused_by_name(model: str, named: list[str]) -> None:
    """All unknown names of the request, and none of the known ones, are named as the client wrote them."""
    with pytest.raises(ApiError, match="unknown_model") as caught:
        read(model, max_items=5)
    without_hints = re.sub(r" \(did you mean [^)]*\)", "", caught.value.message)
    assert re.findall('"([^"]*)"', without_hints) == named
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("qwen3-32b", "Qwen/Qwen3-32B"),
        ("Qwen/Qwne3-32B:latency", "Qwen/Qwen3-32B"),
        ("QWEN/QWEN3-32B", "Qwen/Qwen3-32B"),
        ("mistral", "unsloth/Mistral-Small-3.1-24B-Instruct-2503"),
        ("chutesai/autopilot", ALIAS),
    ],
)
def test_close_names_are_suggested(wrong: str, right: str) -> None:
    """Another case, a slip of the keys, a forgotten organisation and a mere part lead to the name that was meant."""
    filler = {f"org{i}/model-{i}" for i in range(300)}
    known = frozenset(filler | {"Qwen/Qwen3-32B", "unsloth/Mistral-Small-3.1-24B-Instruct-2503"})
    with pytest.raises(ApiError) as caught:
        read(wrong, known)
    assert f'did you mean "{right}"' in caught.value.message


def test_nothing_like_it_suggests_nothing() -> None:
    """Far-fetched names would mislead."""
    with pytest.raises(ApiError) as caught:
        read("zzz")
    assert "did you mean" not in caught.value.message


@pytest.mark.parametrize("model", ["nope", "nope,org/a", "nope:latency"])
def test_unknown_names_pass_where_nothing_can_or_shall_be_validated(model: str) -> None:
    """An empty catalog knows nothing, and unknown="pass" leaves the judgement to the upstream."""
    passed = read_model_field(model, CATALOG, max_items=4, unknown="pass")
    assert passed == read_model_field(model, frozenset(), max_items=4, unknown="refuse")
    first = passed.items[0] if isinstance(passed, PreferenceList) else passed
    assert isinstance(first, Direct)
    assert first.base == "nope"


@pytest.mark.parametrize("model", [":THINKING", ":latency", ":latency:THINKING"])
def test_a_suffix_alone_is_its_own_base(model: str) -> None:
    """No model is ever remembered or counted under an empty name."""
    assert base_of(model, frozenset()) == model


PIECES = [
    *("a", "b", "org/a", "org/b", "odd,name", "odd", "default", ALIAS, OTHER_ALIAS, "\u0130"),
    *(",", ",", ",", " ", "\t", "\u00a0", ":", ":THINKING", ":latency", ":Throughput"),
]
MODELS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=40))


@given(
    model=MODELS,
    known=st.frozensets(st.sampled_from(["a", "b", "org/a", "odd,name", "a:latency", "b:THINKING", ALIAS])),
    max_items=st.integers(1, 5),
    unknown=st.sampled_from(["refuse", "pass"]),
)
def test_whatever_comes_is_read_or_refused_with_an_answer(model, known, max_items, unknown) -> None:  # type: ignore[no-untyped-def]
    """No text escapes as another exception, and what is read holds the promises of its class."""
    field: ModelField | ApiError
    try:
        field = read_model_field(check_model_value(model), known, max_items=max_items, unknown=unknown)
    except ApiError as error:
        field = error
    if isinstance(field, ApiError):
        assert (field.param, field.status) == ("model", 400)
        assert len(field.message) < 8000
        return
    items = field.items if isinstance(field, PreferenceList) else (field,)
    if isinstance(field, PreferenceList):
        assert "," in model
        assert 1 <= len(items) <= max_items
        assert len(set(items)) == len(items)
        assert all(item.base in model for item in items if isinstance(item, Direct))
    for item in items:
        if isinstance(item, Direct):
            assert item.model.startswith(item.base)
            assert item.base == base_of(item.model, known)
            assert item.base
            if isinstance(field, PreferenceList):
                assert item.model == item.model.strip(" \t")
            if known and unknown == "refuse":
                assert item.base in known or item.base == "default"


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=2))
def test_a_list_keeps_the_order_of_first_mention(names: list[str]) -> None:
    """Dropping repetitions never reorders."""
    field = read_model_field(" , ".join(names), frozenset(), max_items=5, unknown="refuse")
    assert field == plain(*sorted(set(names), key=names.index))
