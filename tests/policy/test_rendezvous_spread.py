from collections import Counter
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chutes_autopilot.policy.ranking import Ranked
from chutes_autopilot.policy.spread import spread


def ranked(model: str, score: float) -> Ranked:
    return Ranked(model, score, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, model, None)


def clients(count: int) -> list[bytes]:
    return [sha256(b"client %d" % number).digest() for number in range(count)]


scores = st.dictionaries(st.sampled_from([f"org/model-{n}-TEE" for n in range(12)]), st.floats(0.1, 100), min_size=1)
keys = st.binary(min_size=32, max_size=32)


@given(scores, keys, st.randoms())
def test_the_order_depends_on_nothing_but_client_and_scores(
    known: dict[str, float], key: bytes, chance: object
) -> None:
    """Every replica gives a client the same order, however the feed listed the models."""
    ranking = [ranked(*item) for item in known.items()]
    first = spread(key, ranking)
    chance.shuffle(ranking)  # type: ignore[attr-defined]
    assert spread(key, ranking) == first
    assert sorted(first) == sorted(known)


@given(scores, keys, st.data())
def test_a_change_moves_only_the_model_that_changed(known: dict[str, float], key: bytes, data: st.DataObject) -> None:
    """The others keep their order among themselves; more capacity moves a model up, less down, none away."""
    model = data.draw(st.sampled_from(sorted(known)))
    score = data.draw(st.floats(0.1, 100))
    before = spread(key, [ranked(*item) for item in known.items()])
    after = spread(key, [ranked(*item) for item in (known | {model: score}).items()])
    assert [m for m in before if m != model] == [m for m in after if m != model]
    if score >= known[model]:
        assert after.index(model) <= before.index(model)
    else:
        assert after.index(model) >= before.index(model)


def test_the_share_is_the_share_of_free_capacity() -> None:
    """Of many clients each model is first for its part of all positive scores, within chance."""
    weights = {"a": 16.0, "b": 8.0, "c": 4.0, "d": 3.0, "e": 1.0}
    ranking = [ranked(*item) for item in weights.items()]
    count = 4000
    first = Counter(spread(key, ranking)[0] for key in clients(count))
    # chi-square with 4 degrees of freedom; 18.5 is exceeded once in a thousand such samples, this one is fixed
    expected = {model: count * weight / 32 for model, weight in weights.items()}
    assert sum((first[m] - n) ** 2 / n for m, n in expected.items()) < 18.5


def test_the_second_choice_is_spread_as_well() -> None:
    """The clients of a model that fails go to all others in proportion, not to one of them."""
    ranking = [ranked("a", 10), ranked("b", 5), ranked("c", 5)]
    second = Counter(order[1] for key in clients(2000) if (order := spread(key, ranking))[0] == "a")
    assert second["b"] / second["c"] == pytest.approx(1, abs=0.2)


@settings(max_examples=20)
@given(keys)
def test_the_full_ones_come_last_as_ranked(key: bytes) -> None:
    """Models without a positive score are no part of the lottery."""
    order = spread(key, [ranked("a", 1), ranked("x", 0), ranked("b", 2), ranked("y", -1), ranked("z", -9)])
    assert set(order[:2]) == {"a", "b"}
    assert order[2:] == ("x", "y", "z")
    assert spread(key, []) == ()
