"""How many models each further filter would leave."""

from explorer_samples import chutes, uuid
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.facets import FACETS, MAX_VALUES, facets
from chutes_autopilot.explorer.listing import ListedChute
from chutes_autopilot.explorer.merge import merge
from chutes_autopilot.explorer.parameters import Parameters
from chutes_autopilot.explorer.query import Query, read_query
from chutes_autopilot.explorer.selection import matching

TEMPLATES = (None, "vllm", "diffusion", "tei")


def listed(number: int, template: str | None, owner: str, hot: bool | None) -> ListedChute:
    return ListedChute(f"m{number}", uuid(number), template=template, owner=owner, hot=hot)


def test_a_filter_does_not_narrow_its_own_facet() -> None:
    """Else choosing one kind would hide that there are others."""
    records = merge(
        chutes(listed(1, "vllm", "a", True), listed(2, "vllm", "b", None), listed(3, "diffusion", "b", None)),
        None,
        None,
    ).records
    found = facets(records, Query(kind=("chat",), owner=("b",)))
    assert found["kind"] == {"chat": 1, "image": 1}
    assert found["owner"] == {"a": 1, "b": 1}
    assert found["hot"] == {"unknown": 1}
    assert list(facets(records, Query())["owner"]) == ["b", "a"]
    assert facets(records, Query())["conflict"] == {"false": 3}


@given(
    st.lists(
        st.tuples(st.sampled_from(TEMPLATES), st.sampled_from("ab"), st.sampled_from([True, False, None])), max_size=12
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["chat", "image,chat"]),
            "owner": st.just("a"),
            "hot": st.sampled_from(["true", "unknown"]),
        },
    ),
)
def test_a_count_is_what_the_filter_then_finds(
    rows: list[tuple[str | None, str, bool | None]], parameters: dict[str, str]
) -> None:
    """For each value: put it in the place of the parameter's own, and so many models are found."""
    records = merge(chutes(*(listed(number, *row) for number, row in enumerate(rows))), None, None).records
    counted = facets(records, read_query(Parameters(parameters.items())))
    assert set(counted) == set(FACETS)
    for parameter in ("kind", "owner", "hot", "template", "modality", "source", "conflict", "tee"):
        for value, count in counted[parameter].items():
            then = read_query(Parameters({**parameters, parameter: value}.items()))
            assert len(matching(records, then)) == count


def test_a_facet_has_a_bounded_number_of_values() -> None:
    """Thousands of owners are not all listed; the most frequent are."""
    many = [listed(number, "vllm", f"o{number}", None) for number in range(150)]
    records = merge(chutes(*many, listed(999, "vllm", "o149", None)), None, None).records
    owners = facets(records, Query())["owner"]
    assert len(owners) == MAX_VALUES
    assert next(iter(owners.items())) == ("o149", 2)
