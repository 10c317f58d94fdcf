import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.errors import ApiError
from chutes_autopilot.policy.alias_file import (
    MAX_ALIASES,
    MAX_FILE_BYTES,
    AliasesError,
    OwnAliases,
    listed_names,
    read_alias_file,
)
from chutes_autopilot.policy.aliases import ANY, EXAMPLES, ComposedAlias, Wanted, read_composed_alias, read_parts
from chutes_autopilot.policy.model_field import Alias, Direct, ModelField, PreferenceList, read_model_field
from chutes_autopilot.policy.model_offers import UNKNOWN, Offer

NONE: frozenset[str] = frozenset()


def read(parts: str, known: frozenset[str] = NONE) -> ComposedAlias | None:
    return read_composed_alias("chutesai/AutoPilot" + parts, known)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (":tee", ":tee"),
        (":TEE", ":tee"),
        (":fast:tee", ":tee:fast"),
        (":latency", ":fast"),
        (":vision:tools:vision", ":tools:vision"),
        (":ctx>=128k", ":ctx>=128k"),
        (":ctx>=131072", ":ctx>=131072"),
        (":ctx>=1000K:ctx>=200k", ":ctx>=1m"),
        (":max$0.50:max$2", ":max$0.5"),
        (":max$100", ":max$100"),
        (":max$0", ":max$0"),
        (":throughput:max$1:ctx>=1m:vision:tools:tee", ":tee:tools:vision:ctx>=1m:max$1:throughput"),
        (":tee:THINKING", ":tee:THINKING"),
    ],
)
def test_the_canonical_spelling(parts: str, name: str) -> None:
    """Parts combine in any order and case; of two limits the stricter stays."""
    found = read(parts)
    assert found is not None
    assert found.name == "chutesai/AutoPilot" + name
    assert read_composed_alias(found.name, NONE) == found
    assert read_composed_alias("chutesai-routing/AutoPilot" + parts, NONE) == found


@pytest.mark.parametrize(
    "model", ["chutesai/AutoPilot", "chutesai/AutoPilot:THINKING", "chutesai/AutoPilotX:tee", "a:tee", ""]
)
def test_what_is_no_composed_alias(model: str) -> None:
    """The bare alias and other models are left to the rest of the grammar."""
    assert read_composed_alias(model, NONE) is None


@pytest.mark.parametrize("known", ["chutesai/AutoPilot:fast", "chutesai/AutoPilot:fast:THINKING"])
def test_a_name_of_the_catalog_wins(known: str) -> None:
    """A model that the platform lists under such a name is that model."""
    assert read(":fast:THINKING", frozenset((known,))) is None


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (":", "'' is no part"),
        (":tee:", "'' is no part"),
        (":quick", "'quick' is no part"),
        (":ctx>=0", "'ctx>=0' is no part"),
        (":ctx>=128g", "is no part"),
        (":ctx>128k", "is no part"),
        (":max$", "is no part"),
        (":max$-1", "is no part"),
        (":THINKING:tee", "'THINKING' is no part"),
        (":fast:tee:throughput", "fast and throughput are two different orders"),
        (":" + "x" * 900, "xxx...' is no part"),
    ],
)
def test_a_faulty_part_is_named(parts: str, says: str) -> None:
    """The error says which part is wrong and which there are."""
    with pytest.raises(ApiError) as refused:
        read(parts)
    assert (refused.value.code, refused.value.param) == ("invalid_model", "model")
    assert says in refused.value.message
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("parts", "offer", "unmet"),
    [
        (":tee", Offer(confidential=True), None),
        (":tee", Offer(confidential=False), "tee"),
        (":tools:vision", Offer(has=frozenset(("tools", "image"))), None),
        (":tools:vision", Offer(has=frozenset(("tools",))), "vision"),
        (":ctx>=128k", Offer(context=131072, context_served=131072), None),
        (":ctx>=128k", Offer(context=96000, context_served=96000), "ctx>=128k"),
        (":ctx>=128k", Offer(context=262144), "ctx>=128k"),
        (":max$0.416", Offer(output_price=0.41600000000000004), None),
        (":max$0.416", Offer(output_price=0.4161), "max$0.416"),
        (":max$0", Offer(output_price=0.0), None),
        (":fast", UNKNOWN, None),
    ],
)
def test_which_models_remain(parts: str, offer: Offer, unmet: str | None) -> None:
    """A model must be known to keep every part; orders ask nothing of it."""
    assert read_parts(parts).unmet(offer) == unmet


@pytest.mark.parametrize("part", EXAMPLES)
def test_nothing_is_promised_for_an_unknown_model(part: str) -> None:
    """What the catalog does not say is not kept, but for an order."""
    assert (read_parts(":" + part).unmet(UNKNOWN) is None) == (part in ("fast", "throughput"))


parts = st.lists(
    st.sampled_from(["tee", "tools", "vision", "fast"])
    | st.integers(1, 10**9 - 1).map("ctx>={}".format)
    | st.integers(1, 2000).map("ctx>={}k".format)
    | st.decimals(0, 999999, places=3).map("max${:f}".format),
    min_size=1,
    max_size=6,
)


@given(parts.flatmap(lambda given: st.tuples(st.just(given), st.permutations(given))))
def test_the_order_of_parts_does_not_matter(given: tuple[list[str], list[str]]) -> None:
    """Any order reads as the same wish, and its canonical spelling reads as itself."""
    one, other = (read_parts("".join(f":{part}" for part in parts)) for parts in given)
    assert one == other
    assert one.parts == other.parts
    assert read_parts(one.parts) == one


def test_wishes_add_up() -> None:
    """The operator's wish and the client's are both kept."""
    both = Wanted(tee=True, context=5, max_price=Decimal(3)) & Wanted(tools=True, context=4, order="fast")
    assert both == Wanted(tee=True, tools=True, context=5, max_price=Decimal(3), order="fast")
    assert ANY.parts == ""


# the operator's file


def own(**by_name: Any) -> OwnAliases:
    return read_alias_file(json.dumps(by_name).encode())


def test_a_file_of_aliases() -> None:
    """Lists stay as they are, composed aliases become canonical, a filter becomes one of them."""
    aliases = read_alias_file(
        b'\xef\xbb\xbf{"house/coder": ["a", "b:THINKING", "chutesai/AutoPilot:fast:tools"], "p": ":ctx>=1000k:tee"}'
    )
    assert aliases.by_name == {
        "house/coder": ("a", "b:THINKING", "chutesai/AutoPilot:tools:fast"),
        "p": ("chutesai/AutoPilot:tee:ctx>=1m",),
    }


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("other", "other"),
        ("two", "a,b:THINKING"),
        (" two ", "a,b:THINKING"),
        ("two:THINKING", "a:THINKING,b:THINKING"),
        ("one", "a"),
        ("x, two,one", "x,a,b:THINKING,a"),
        ("x,two:THINKING", "x,a:THINKING,b:THINKING"),
        ("x , y", "x , y"),
        ("two,", "a,b:THINKING,"),
        ("f", "chutesai/AutoPilot:tee"),
        ("f:THINKING", "chutesai/AutoPilot:tee:THINKING"),
        ("two:latency", "a,b:THINKING:latency"),
        ("swift:throughput", "a,b:THINKING:throughput"),
        ("first:throughput", "a:throughput"),
        ("both:latency", "a:latency"),
        ("f:Latency:THINKING", "chutesai/AutoPilot:tee:latency:THINKING"),
        ("listed:THINKING", "listed:THINKING"),
        ("listed", "listed"),
        ("listed,one", "listed,a"),
    ],
)
def test_an_alias_stands_for_its_models(model: str, meant: str) -> None:
    """It is replaced alone and in lists; names of the catalog win; whatever holds none is left as it came."""
    aliases = own(
        two=["a", "b:THINKING"],
        one=["a"],
        f=":tee",
        listed=["z"],
        swift=["a:Latency", "b:latency:THINKING"],
        first=["a:latency"],
        both=["a:latency", "a:throughput"],
    )
    assert aliases.expand(model, frozenset(("listed",))) == meant


A, B, C = (Direct(name, name) for name in "abc")
THOUGHTFUL = {name: Direct(f"{name}:THINKING", name) for name in "abc"}


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("two,c,a", PreferenceList((A, B, C))),
        ("one", PreferenceList((A,))),
        ("fast", Alias(wanted=Wanted(order="throughput"))),
        # what stands at the end of an alias is its last item's, not the list's
        ("deep", PreferenceList((A, THOUGHTFUL["b"]))),
        ("c,deep", PreferenceList((C, A, THOUGHTFUL["b"]))),
        ("c,fast", PreferenceList((C, Alias(wanted=Wanted(order="throughput"))))),
        # what the client writes there is
        ("c,two:THINKING", PreferenceList((THOUGHTFUL["c"], THOUGHTFUL["a"], THOUGHTFUL["b"]))),
        ("c,two:latency", PreferenceList((C, A, B), "fast")),
        ("two:latency", PreferenceList((A, B), "fast")),
        ("two:THROUGHPUT:THINKING", PreferenceList((THOUGHTFUL["a"], THOUGHTFUL["b"]), "throughput")),
        ("one:latency", PreferenceList((A,), "fast")),
        ("swift:throughput", PreferenceList((B,), "throughput")),
        ("c,swift:throughput", PreferenceList((C, B), "throughput")),
        ("mixed:latency", PreferenceList((Alias(), B), "fast")),
        ("fast:latency", Alias(wanted=Wanted(order="fast"))),
        ("fast:latency:THINKING", Alias(":THINKING", Wanted(order="fast"))),
        # in the middle it is the models', as behind a model's name
        ("one:latency,c", PreferenceList((Direct("a:latency", "a"), C))),
        ("deep:throughput,c", PreferenceList((Direct("a:throughput", "a"), Direct("b:throughput:THINKING", "b"), C))),
        ("swift:throughput,c", PreferenceList((Direct("b:throughput", "b"), C))),
        ("swift:throughput,c:latency", PreferenceList((Direct("b:throughput", "b"), C), "fast")),
        ("best:latency,c", PreferenceList((Alias(wanted=Wanted(order="fast")), C))),
        ("fast:latency,c", PreferenceList((Alias(wanted=Wanted(order="fast")), C))),
    ],
)
def test_an_alias_is_read_item_by_item(model: str, asked: ModelField) -> None:
    """In its place in a list, each model once; one model is a list, whose name is written into the body."""
    known = frozenset(("a", "b", "c"))
    aliases = own(
        two=["a", "b"],
        one=["a"],
        deep=["a", "b:THINKING"],
        swift=["b:latency"],
        fast=":throughput",
        best=":fast",
        mixed=["chutesai/AutoPilot:throughput", "b:throughput"],
    )
    assert read_model_field(model, known, max_items=8, unknown="refuse", own=aliases) == asked


def test_the_operators_models_do_not_count_against_the_clients() -> None:
    """An alias is one item of a list, of however many models."""
    known = frozenset(map(str, range(30)))
    aliases = own(long=[str(n) for n in range(20)], other=["28", "29"])

    def read(model: str) -> ModelField:
        return read_model_field(model, known, max_items=2, unknown="refuse", own=aliases)

    whole = tuple(Direct(str(n), str(n)) for n in range(20))
    assert read("long") == read("long,long,3") == PreferenceList(whole)
    with pytest.raises(ApiError, match="names 3 different models; between 1 and 2"):
        read("long,other,3")


def test_a_name_of_the_catalog_with_a_suffix_goes_before_an_alias() -> None:
    """As it does without one, also where the suffix belongs to the name."""
    aliases = own(a=["b"], c=["b"])
    known = frozenset(("a", "b", "c:latency"))
    for model, base in (("a:THINKING", "a"), ("a:latency", "a"), ("c:latency:THINKING", "c:latency")):
        assert read_model_field(model, known, max_items=8, unknown="refuse", own=aliases) == Direct(model, base)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[]", "must be one JSON object"),
        (b'"a"', "must be one JSON object"),
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "nested"),
        (b"\xff", "is not UTF-8"),
        (b" " * (MAX_FILE_BYTES + 1), "at most 262144 are allowed"),
        (b'{"a": ["x"], "a": ["y"]}', "'a' is defined twice"),
        (b'{"": ["x"]}', "'' is no name"),
        (b'{"a,b": ["x"]}', "'a,b' is no name"),
        (b'{"a:b": ["x"]}', "'a:b' is no name"),
        (b'{"chutesai/AutoPilot": ["x"]}', "own alias"),
        (b'{"a": 5}', "'a' must be a list"),
        (b'{"a": {}}', "'a' must be a list"),
        (b'{"a": "b"}', "'a' must be a list of models, or a filter"),
        (b'{"a": []}', "'a' lists 0 models"),
        (json.dumps({"a": list(map(str, range(21)))}).encode(), "'a' lists 21 models"),
        (b'{"a": ["x", "x"]}', "'a' lists a model twice"),
        (b'{"a": ["x", 5]}', "'a' item 2 is no model name"),
        (b'{"a": ["x,y"]}', "'a' item 1 ('x,y') holds a comma"),
        (b'{"a": [" x"]}', "'a' item 1 (' x') holds"),
        (b'{"a": ["b"], "b": ["x"]}', "'a' item 1 ('b') is an alias of this file"),
        (b'{"a": ["a:THINKING"]}', "is an alias of this file"),
        (b'{"a": ["a:latency:THINKING"]}', "is an alias of this file"),
        (b'{"a": %b}' % (b"1" * 5000), "thousands of digits"),
        (b'{"a": ":tee:quick"}', "'a' 'quick' is no part"),
        (b'{"a": ["chutesai/AutoPilot:quick"]}', "'a' item 1 ('chutesai/AutoPilot:quick'): 'quick' is no part"),
        (json.dumps({str(n): ["x"] for n in range(MAX_ALIASES + 1)}).encode(), "defines 501 aliases"),
    ],
)
def test_a_faulty_file_names_its_entry(data: bytes, says: str) -> None:
    """The message says which entry is wrong and what is allowed."""
    with pytest.raises(AliasesError) as fault:
        read_alias_file(data)
    assert says in str(fault.value)


def test_all_faulty_entries_are_named() -> None:
    """One look at the message is enough to mend the file."""
    with pytest.raises(AliasesError, match=r"'0' must be.*; '19' must be.*; and 5 more"):
        own(**{str(n): None for n in range(25)})


@given(
    st.recursive(
        st.none() | st.text(max_size=4) | st.integers(),
        lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=4), i, max_size=3),
        max_leaves=8,
    )
)
def test_a_file_is_read_or_refused(content: Any) -> None:
    """No content ends in anything but aliases that can be expanded, or AliasesError."""
    try:
        aliases = read_alias_file(json.dumps(content).encode())
    except AliasesError:
        return
    for name, items in aliases.by_name.items():
        assert aliases.expand(name, NONE) == ",".join(items)


def test_the_list_of_names() -> None:
    """The bare alias is first, then one of each part, then the operator's; names of the catalog are not repeated."""
    names = listed_names(own(mine=["a"], taken=["b"]), frozenset(("taken",)))
    assert names[0] == "chutesai/AutoPilot"
    assert names[-1] == "mine"
    assert all(read_composed_alias(name, NONE) for name in names[1:-1])
    assert len(names) == len(EXAMPLES) + 2
